"""That nothing a test started is still running at its end.

gRPC's own tasks end when its threads have told the loop so, which may be some turns after its
``stop`` or ``close`` returned: a check that only lets the loop turn a few times fails on a busy
machine. So whoever checks waits for the tasks themselves, and names those that do not end.
Not here: tasks that were there before the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

PATIENCE_S = 10.0


async def none_left(
    before: Collection[asyncio.Task[object]], names: tuple[str, ...] = ("",)
) -> None:
    """Wait until tasks begun since ``before`` ended; only those whose names begin with ``names``.

    Raises:
        AssertionError: some still ran after ``PATIENCE_S``.
    """
    others = asyncio.all_tasks() - set(before) - {asyncio.current_task()}
    left = {task for task in others if task.get_name().startswith(names)}
    if left:
        _, left = await asyncio.wait(left, timeout=PATIENCE_S)
    assert not left, f"tasks left: {left}"
