"""A reader of another process dies by SIGKILL amid a read; the KV must go to the next reader.

For transports that reach other processes of this host. Not covered: what only one of them has.
"""

from __future__ import annotations

from dataclasses import replace

from support import kv_process
from support.kv_pair import FIRST, kv_pair, until
from support.kv_process import other_process


async def check_the_kv_goes_to_the_next_reader(transport: str) -> None:
    async with kv_pair(transport) as pair:
        ticket = pair.ticket(kv_process.NUM_TOKENS)
        export = pair.offer(ticket)
        export.advance(8)
        async with other_process(transport, "read", pair.endpoint.address) as (process, line):
            assert line == "reading"
            process.kill()
            await process.wait()
        await until(lambda: export.is_held)
        later = replace(ticket, epoch=2)
        assert export.rearm(later)
        export.advance(ticket.num_tokens)
        export.commit(FIRST)
        pair.take(await pair.redeem(later), export)
