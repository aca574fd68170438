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


async def unless_one_fails(
    work: Coroutine[Any, Any, None], watches: Iterable[Coroutine[Any, Any, None]]
) -> None:
    """``work``, which is cancelled when a watch raises: its error is raised then, as it is. A watch
    that returns has nothing more to say."""
    main = asyncio.create_task(work)
    tasks = [main, *(asyncio.create_task(watch) for watch in watches)]
    pending = set(tasks)
    try:
        while not main.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {main}:
                if not main.done():
                    task.result()
        main.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
