"""Several works at once, as one: done when all are, failed when one is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def all_or_cancel(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them; when one fails the others are cancelled and its error is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    if not tasks:
        return
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
