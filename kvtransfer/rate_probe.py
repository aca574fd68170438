"""How fast KV comes from a holder, measured by a read that no request wants.

Two reads of a few MiB into scratch memory (less if the holder's pool is small: it says how much),
of which the faster counts, over the transport's way:
frames, credit, checksums and commit as in any read (ReaderSession), timed from the reader's word to
its verdict. One at a time, while no read of a request runs here or there; the first one that begins
ends the probe. A reader spends at most ``SHARE`` of its time on probes; running steps do not pace
them (8 MiB take milliseconds, twice for a peer and transport). The copy into a device's memory is
not in the figure, nor is conversion. Knows neither routers nor which transport is better.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kvtransfer.codec import encode
from kvtransfer.config import TransferConfig
from kvtransfer.importer import Importer
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Ack, Probe
from kvtransfer.probe_holder import PROBE_EPOCH, PROBE_S, PROBE_TICKET
from kvtransfer.reader_session import ReaderSession
from kvtransfer.store import BlockCopier
from kvtransfer.transports.base import Connection
from pdserve.clock import Clock
from pdserve.errors import PeerBusy, PeerSilent, PeerUnreachable
from pdserve.types import Endpoint, KVLayout, TransferTicket, WorkerId

SHARE = 0.1  # of the time, at most
READS = 2  # at one probe: the faster one counts
TRIES = 5  # at a busy holder, or while reads begin here
PAUSE_S = 1.0  # before the next one, doubling


@dataclass(frozen=True, slots=True)
class WayRate:
    """``num_bytes``: what was read to tell it, once."""

    transport: str
    bytes_per_s: float
    num_bytes: int


class ScratchBlocks:
    """Host memory of so many blocks: satisfies BlockBuffers, and Lease for all of them."""

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.num_cached = 0
        self.device = "cpu"
        self.copier: BlockCopier | None = None
        self.memory_fd: int | None = None
        self._memory = memoryview(bytearray(num_blocks * layout.block_bytes))

    @property
    def block_ids(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks))

    def block_at(self, position: int) -> int:
        return position

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        return self._memory[block_id * size : (block_id + 1) * size]

    def pin(self) -> None:
        """Nobody takes these away."""

    def unpin(self) -> None:
        """As ``pin``."""

    def release(self) -> None:
        """Goes with the object."""


class RateProbe:
    """Measures for one worker. ``importer``: whose reads go first and whose dialers are used."""

    def __init__(
        self, importer: Importer, clock: Clock, config: TransferConfig, incarnation: str
    ) -> None:
        self._importer = importer
        self._clock = clock
        self._config = config
        self._incarnation = incarnation
        self._turn = asyncio.Lock()

    @property
    def enabled(self) -> bool:
        return self._config.kv_probe_bytes > 0

    async def measure(self, endpoint: Endpoint, layout: KVLayout) -> WayRate | None:
        """None: the holder, or this worker, had no quiet moment.

        Raises:
            TransferError: a leaf: the way does not work, or the holder offers no probe.
        """
        pause_s = PAUSE_S
        for attempt in range(TRIES):
            if attempt:
                await self._clock.sleep(pause_s)
                pause_s *= 2
            async with self._turn:
                await self._importer.quiet.wait()
                started_s = self._clock.now()
                try:
                    found = await self._unless_busy(endpoint, layout)
                except PeerBusy:
                    found = None
                await self._clock.sleep((self._clock.now() - started_s) * (1 / SHARE - 1))
                if found is not None:
                    return found
        return None

    async def _unless_busy(self, endpoint: Endpoint, layout: KVLayout) -> WayRate | None:
        """None: a request's read began here."""
        probe = asyncio.create_task(self._best(endpoint, layout))
        reads = asyncio.create_task(self._importer.busy.wait())
        try:
            await asyncio.wait({probe, reads}, return_when=asyncio.FIRST_COMPLETED)
            return probe.result() if probe.done() else None
        finally:
            probe.cancel()
            reads.cancel()
            await asyncio.gather(probe, reads, return_exceptions=True)

    async def _best(self, endpoint: Endpoint, layout: KVLayout) -> WayRate:
        """The first read also pays for pages and buffers that are there for all later ones."""
        scratch = ScratchBlocks(layout, max(1, self._config.kv_probe_bytes // layout.block_bytes))
        reads = [await self._once(endpoint, scratch) for _ in range(READS)]
        return max(reads, key=lambda read: read.bytes_per_s)

    async def _once(self, endpoint: Endpoint, scratch: ScratchBlocks) -> WayRate:
        connection = await self._importer.connect(endpoint)
        try:
            async with asyncio.timeout(PROBE_S):
                return await self._read(connection, endpoint, scratch)
        except TimeoutError:
            raise PeerSilent(f"{endpoint.transport}: no probe in {PROBE_S:g} s") from None
        finally:
            await connection.close()

    async def _read(
        self, connection: Connection, endpoint: Endpoint, scratch: ScratchBlocks
    ) -> WayRate:
        layout = scratch.layout
        num_tokens = scratch.num_blocks * layout.block_size
        ticket = TransferTicket(
            PROBE_TICKET, PROBE_EPOCH, WorkerId(""), "", (endpoint,), layout, num_tokens, PROBE_S
        )
        started_s = 0.0

        async def make_room(num_tokens: int) -> ScratchBlocks:
            nonlocal started_s
            started_s = self._clock.now()
            return scratch

        reader = ReaderSession(connection, ticket, scratch, self._config, self._clock)
        opening = Probe(num_tokens, self._importer.worker_id, self._incarnation)
        budget = IntakeBudget(max(1, self._config.kv_probe_bytes))
        imported = await reader.run(opening, make_room, budget, endpoint.transport)
        took_s = self._clock.now() - started_s
        await connection.send(encode(Ack()))
        await _ended(connection)
        num_bytes = imported.timing.num_bytes
        return WayRate(endpoint.transport, num_bytes / max(took_s, 1e-9), num_bytes)


async def _ended(connection: Connection) -> None:
    """Closing first could overtake the last word."""
    try:
        while True:
            await connection.receive()
    except PeerUnreachable:
        pass
