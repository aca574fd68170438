"""What a holder reads out to a peer that measures the way: blocks that no request has.

A Probe is a KV read like any other (HolderSession) of spare blocks, written over with zeros first:
nobody gets a byte of anyone's KV by it. Half of the pool at most: of a small one less comes than
was asked for. Requests go first: while any ticket is offered here, or another probe runs, a probe
is refused, and the first offer ends one. Decides nothing about who is measured when (the reader,
rate_probe.py).
"""

from __future__ import annotations

from collections.abc import Callable

from kvtransfer.codec import encode
from kvtransfer.config import TransferConfig
from kvtransfer.export import Export
from kvtransfer.holder_session import HolderSession
from kvtransfer.messages import FirstTokenInfo, Open, Probe, Refused
from kvtransfer.store import BlockBuffers, Lease
from kvtransfer.ticket_book import TicketBook
from kvtransfer.transports.base import Connection
from pdserve.clock import Clock
from pdserve.errors import PdserveError, PeerBusy, TransferError
from pdserve.log import event_log
from pdserve.types import TicketId, TransferTicket, WorkerId

PROBE_TICKET = TicketId("probe")  # in a book of its own: no request's ticket
PROBE_EPOCH = 1
PROBE_S = 5.0  # no probe takes longer

SpareBlocks = Callable[[int], Lease | None]
"""So many blocks that nobody misses, or None."""

_log = event_log(__name__)


class ProbeHolder:
    """Probes of one worker, one at a time."""

    def __init__(
        self, buffers: BlockBuffers, clock: Clock, config: TransferConfig, spare: SpareBlocks
    ) -> None:
        self._buffers = buffers
        self._clock = clock
        self._config = config
        self._spare = spare
        self._export: Export | None = None

    def stop(self) -> None:
        """A request is here: the probe that runs is over."""
        if self._export is not None:
            self._export.close(PeerBusy.code, "a request came")

    async def serve(self, connection: Connection, probe: Probe, *, busy: bool) -> None:
        """Raises PeerUnreachable: it could not be refused."""
        layout, num_blocks = self._buffers.layout, self._buffers.num_blocks
        num_tokens = min(probe.num_tokens, num_blocks // 2 * layout.block_size)
        if num_tokens < 1:
            problem = f"{probe.num_tokens} tokens of a pool of {num_blocks} blocks: nothing to read"
            await connection.send(encode(Refused(TransferError.code, problem)))
            return
        is_free = not busy and self._export is None
        lease = self._spare(layout.num_blocks(num_tokens)) if is_free else None
        if lease is None:
            await connection.send(encode(Refused(PeerBusy.code, "requests go first")))
            return
        try:
            await self._read_out(connection, probe, lease, num_tokens)
        except PdserveError as error:  # the reader went: a request came there, or it ended
            _log.debug("kv_probe_ended", peer=connection.peer, error=error)
        finally:
            lease.release()

    async def _read_out(
        self, connection: Connection, probe: Probe, lease: Lease, num_tokens: int
    ) -> None:
        layout = self._buffers.layout
        ticket = TransferTicket(
            PROBE_TICKET, PROBE_EPOCH, WorkerId(""), "", (), layout, num_tokens, PROBE_S
        )
        book = TicketBook(layout)
        export = Export(ticket, lease, num_tokens, self._clock, book.changed)
        book.enter(export)
        self._export = export
        try:
            await self._blank(lease)
            export.advance(num_tokens)
            export.commit(FirstTokenInfo(0, 0))
            opening = Open(PROBE_TICKET, PROBE_EPOCH, probe.worker_id, probe.incarnation, layout)
            await HolderSession(connection, opening, book, self._buffers, self._config).run()
        finally:
            self._export = None
            export.close(TransferError.code, "the probe is over")

    async def _blank(self, lease: Lease) -> None:
        """Raises EngineFailure."""
        copier, size = self._buffers.copier, self._buffers.layout.block_bytes
        lease.pin()
        try:
            if copier is None:
                for block_id in lease.block_ids:
                    self._buffers.view(block_id)[:] = bytes(size)
                return
            zeros = copier.staging(lease.num_blocks * size)
            zeros[:] = bytes(zeros.nbytes)
            await copier.write(lease.block_ids, zeros)
        finally:
            lease.unpin()
