"""Waiting for the reader of a ticket. Knows no legs."""

from __future__ import annotations

import asyncio

from kvtransfer.exporter import Export


async def opened_or_over(export: Export, timeout_s: float) -> bool:
    """True once a reader opened the ticket or the ticket is over; False if neither in time."""
    waits = {
        asyncio.create_task(export.wait_opened()),
        asyncio.create_task(_over(export)),
    }
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _over(export: Export) -> None:
    await export.outcome()
