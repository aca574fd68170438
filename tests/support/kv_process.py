"""A holder or a reader of KV over shm as a process of its own, to be killed by a test.

python kv_process.py hold                 offers ticket-1, half computed; prints its address
python kv_process.py read ADDRESS         reads ticket-1; prints a line once it has the KV begun
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from pdserve.types import Endpoint  # noqa: E402
from support.kv_pair import LAYOUT, kv_pair  # noqa: E402

NUM_TOKENS = 16


async def hold() -> None:
    async with kv_pair("shm", layout=LAYOUT) as pair:
        export = pair.offer(pair.ticket(NUM_TOKENS))
        export.advance(8)
        print(pair.endpoint.address, flush=True)
        await asyncio.Event().wait()


async def read(address: str) -> None:
    async with kv_pair("shm", layout=LAYOUT) as pair:
        reading = pair.redeem(pair.ticket(NUM_TOKENS, endpoints=(Endpoint("shm", address),)))
        while pair.intake.bytes_taken == 0:
            assert not reading.done()
            await asyncio.sleep(0)
        print("reading", flush=True)
        await reading


if __name__ == "__main__":
    asyncio.run(hold() if sys.argv[1] == "hold" else read(sys.argv[2]))
