"""Two ends of the road in one process: a holder and a reader with memory of their own.

Memory is a bytearray, leases come from the real block pool. ``KvPair`` checks at its end that both
pools are full, that no export is left and that no task it started is alive.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from engine.block_pool import BlockBuffers, BlockCopier, BlockLease, BlockPool
from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Export, Exporter
from kvtransfer.importer import ImportedKv, Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import FirstTokenInfo
from kvtransfer.transports.base import Handler
from pdserve.clock import MonotonicClock
from pdserve.memory_file import MemoryFile
from pdserve.types import (
    Endpoint,
    KVLayout,
    TicketId,
    TokenLogprobs,
    TransferTicket,
    WorkerId,
)
from support.kv_transports import Carrier, make_carrier
from support.staged import GatedCopier, StagedBuffers
from support.tasks import none_left

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, head_dim=4, block_size=4, dtype="float32")
FIRST = FirstTokenInfo(3, 77, TokenLogprobs(-0.5, ((77, -0.5), (78, -1.5))))
NUM_BLOCKS = 64


class ByteBuffers:
    """Satisfies BlockBuffers. Starts filled with noise, so that unwritten bytes show."""

    def __init__(self, layout: KVLayout, num_blocks: int, seed: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = "cpu"
        self.copier: BlockCopier | None = None
        self._file = MemoryFile(self.num_bytes, "pdserve-kv-test")
        self.memory_fd = self._file.fd
        self._memory = self._file.view
        self._memory[:] = random.Random(seed).randbytes(self.num_bytes)

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.layout.block_bytes

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        return self._memory[block_id * size : (block_id + 1) * size]

    def contents(self, lease: BlockLease) -> list[bytes]:
        return [bytes(self.view(block_id)) for block_id in lease.block_ids]


@dataclass
class KvPair:
    """Holder and reader. ``endpoint`` is where the holder's listener is."""

    config: TransferConfig
    endpoint: Endpoint
    exporter: Exporter
    importer: Importer
    source: ByteBuffers
    target: ByteBuffers
    holder_pool: BlockPool
    reader_pool: BlockPool
    intake: IntakeBudget
    copiers: dict[str, GatedCopier]
    num_tickets: int = 0
    leases: list[BlockLease] = field(default_factory=list)

    def ticket(self, num_tokens: int, **changes: object) -> TransferTicket:
        self.num_tickets += 1
        ticket = TransferTicket(
            ticket_id=TicketId(f"ticket-{self.num_tickets}"),
            epoch=1,
            worker_id=WorkerId("prefill-1"),
            incarnation="a",
            endpoints=(self.endpoint,),
            layout=self.source.layout,
            num_tokens=num_tokens,
            expires_in_s=60.0,
        )
        return replace(ticket, **changes)  # type: ignore[arg-type]

    def offer(self, ticket: TransferTicket) -> Export:
        lease = self.holder_pool.lease(self.source.layout.num_blocks(ticket.num_tokens))
        assert lease is not None
        self.leases.append(lease)
        return self.exporter.offer(ticket, lease, ticket.num_tokens)

    def offer_computed(self, ticket: TransferTicket) -> Export:
        export = self.offer(ticket)
        export.advance(ticket.num_tokens)
        export.commit(FIRST)
        return export

    async def make_room(self, num_tokens: int) -> BlockLease:
        lease = self.reader_pool.lease(self.target.layout.num_blocks(num_tokens))
        assert lease is not None
        return lease

    def redeem(
        self,
        ticket: TransferTicket,
        make_room: Callable[[int], Awaitable[BlockLease]] | None = None,
    ) -> asyncio.Task[ImportedKv]:
        return asyncio.create_task(
            self.importer.redeem(ticket, make_room or self.make_room, self.intake)
        )

    def take(self, imported: ImportedKv, export: Export) -> None:
        """Check that what was imported is what is held, and give it back."""
        lease = imported.lease
        assert isinstance(lease, BlockLease)
        assert isinstance(export.lease, BlockLease)
        assert self.target.contents(lease) == self.source.contents(export.lease)
        assert imported.first_token == FIRST
        assert imported.num_tokens == export.num_tokens
        lease.release()

    def release_holder(self) -> None:
        while self.leases:
            self.leases.pop().release()


@asynccontextmanager
async def kv_pair(
    transport: str = "inproc",
    *,
    config: TransferConfig | None = None,
    layout: KVLayout = LAYOUT,
    reader_layout: KVLayout | None = None,
    num_blocks: int = NUM_BLOCKS,
    staged: Collection[str] = (),
    wrap: Callable[[Carrier], None] | None = None,
    wrap_handler: Callable[[Handler], Handler] = lambda handler: handler,
) -> AsyncIterator[KvPair]:
    """Both ends, connected; at the end everything is closed and nothing may be left.

    ``staged``: "holder", "reader" or both: their memory is as on a device.
    """
    before = asyncio.all_tasks()
    config = config or TransferConfig(max_frame_bytes=3 * layout.block_bytes)
    clock = MonotonicClock()
    source = ByteBuffers(layout, num_blocks, seed=1)
    target = ByteBuffers(reader_layout or layout, num_blocks, seed=2)
    ends: dict[str, BlockBuffers] = {"holder": source, "reader": target}
    copiers = {end: GatedCopier(ends[end]) for end in staged}
    ends.update({end: StagedBuffers(ends[end], copier) for end, copier in copiers.items()})
    carrier = make_carrier(transport, ends["holder"], config)
    if wrap is not None:
        wrap(carrier)
    holder_pool = BlockPool(num_blocks)
    exporter = Exporter(ends["holder"], clock, config, holder_pool.lease)
    endpoint = await carrier.listener.start(wrap_handler(exporter.serve))
    importer = Importer(
        ends["reader"],
        clock,
        config,
        WorkerId("decode-1"),
        "b",
        {endpoint.transport: carrier.dialer},
    )
    pair = KvPair(
        config, endpoint, exporter, importer, source, target,
        holder_pool, BlockPool(num_blocks), IntakeBudget(1 << 30), copiers,
    )  # fmt: skip
    try:
        yield pair
    finally:
        pair.release_holder()
        await importer.close()
        await exporter.close()
        await carrier.dialer.close()
        await carrier.listener.close()
    await settle()
    assert pair.holder_pool.num_free == num_blocks, "holder's blocks leaked"
    assert pair.reader_pool.num_free == num_blocks, "reader's blocks leaked"
    assert exporter.num_exports == 0
    await until(lambda: exporter.num_connections == 0)
    await none_left(before)


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something without an event of its own is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (turns of the loop, not time)
            await asyncio.sleep(0)
