"""A holder or a reader of KV as a process of its own, to be killed by a test.

python kv_process.py TRANSPORT hold           offers ticket-1, half computed; prints its address
python kv_process.py TRANSPORT read ADDRESS   reads ticket-1; prints a line once the KV has begun
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from pdserve.types import Endpoint  # noqa: E402
from support.kv_pair import LAYOUT, kv_pair  # noqa: E402

NUM_TOKENS = 16


@asynccontextmanager
async def other_process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """(this file as a process, its first line); killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def hold(transport: str) -> None:
    async with kv_pair(transport, layout=LAYOUT) as pair:
        export = pair.offer(pair.ticket(NUM_TOKENS))
        export.advance(8)
        print(pair.endpoint.address, flush=True)
        await asyncio.Event().wait()


async def read(transport: str, address: str) -> None:
    async with kv_pair(transport, layout=LAYOUT) as pair:
        reading = pair.redeem(pair.ticket(NUM_TOKENS, endpoints=(Endpoint(transport, address),)))
        while pair.intake.bytes_taken == 0:
            assert not reading.done()
            await asyncio.sleep(0)
        print("reading", flush=True)
        await reading


if __name__ == "__main__":
    ends = {"hold": hold, "read": read}
    asyncio.run(ends[sys.argv[2]](sys.argv[1], *sys.argv[3:]))
