"""The holder's end of the road: KV of this worker, offered by ticket, read by decode workers.

    export = exporter.offer(ticket, lease, num_tokens)
    await export.wait_opened()                      # then compute
    export.advance(256); ...; export.commit(first)  # frames leave as blocks are computed
    await export.outcome()                          # then release the lease

``serve`` is the handler of every listener (kvtransfer/transports). Knows nothing of requests,
steps or tokens' meaning.
"""

from __future__ import annotations

import asyncio

from kvtransfer.codec import decode
from kvtransfer.config import TransferConfig
from kvtransfer.export import Export, ExportOutcome
from kvtransfer.holder_session import HolderSession
from kvtransfer.messages import Open, Probe
from kvtransfer.probe_holder import ProbeHolder, SpareBlocks
from kvtransfer.store import BlockBuffers, Lease
from kvtransfer.ticket_book import TicketBook
from kvtransfer.transports.base import Connection
from pdserve.clock import Clock
from pdserve.errors import PdserveError, PeerUnreachable, ProtocolError, TicketUnknown
from pdserve.log import event_log
from pdserve.types import TransferTicket

__all__ = ["Export", "ExportOutcome", "Exporter"]

_log = event_log(__name__)


class Exporter:
    """All tickets of one worker."""

    def __init__(
        self,
        buffers: BlockBuffers,
        clock: Clock,
        config: TransferConfig,
        spare: SpareBlocks = lambda num_blocks: None,
    ) -> None:
        """``spare``: blocks for peers that measure the way (probe_holder.py)."""
        self._probes = ProbeHolder(buffers, clock, config, spare)
        self._buffers = buffers
        self._clock = clock
        self._config = config
        self._book = TicketBook(buffers.layout)
        self._num_connections = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.num_failed_reads = 0

    @property
    def num_exports(self) -> int:
        """Tickets that have not ended."""
        return len(self._book.exports)

    @property
    def exported_tokens(self) -> int:
        return sum(export.num_tokens for export in self._book.exports)

    @property
    def num_connections(self) -> int:
        return self._num_connections

    def offer(self, ticket: TransferTicket, lease: Lease, num_tokens: int) -> Export:
        """Let readers with this ticket have the KV of ``num_tokens`` tokens in ``lease``.

        The ticket's time is counted as export.py says. The lease stays the caller's, who releases
        it when the export has ended; before that only together with ``Export.close``.
        """
        assert not self._closed, "offer after close"
        assert lease.num_blocks >= self._buffers.layout.num_blocks(num_tokens), "lease too small"
        export = Export(ticket, lease, num_tokens, self._clock, self._book.changed)
        self._book.enter(export)
        self._probes.stop()
        return export

    async def serve(self, connection: Connection) -> None:
        """Serve one reader until its stream ends. A reader's faults are logged, not raised."""
        self._num_connections += 1
        self._idle.clear()
        try:
            await self._serve(connection)
        except PdserveError as error:
            self.num_failed_reads += 1
            _log.info("kv_read_failed", peer=connection.peer, code=error.code, error=error)
        finally:
            self._num_connections -= 1
            if not self._num_connections:
                self._idle.set()
            await connection.close()

    async def idle(self) -> None:
        """Wait until no reader is connected."""
        await self._idle.wait()

    async def close(self) -> None:
        """End every export and tell its reader. Readers that do not go are left to the listener."""
        self._closed = True
        self._probes.stop()
        for export in self._book.exports:
            export.close(TicketUnknown.code, "the worker stops")
        try:
            async with asyncio.timeout(self._config.farewell_timeout_s):
                await self.idle()
        except TimeoutError:
            _log.warning("kv_readers_left", num=self._num_connections)

    async def _serve(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._config.open_timeout_s):
                opening = decode(await connection.receive())
        except TimeoutError:
            raise ProtocolError("connected and said nothing") from None
        except PeerUnreachable:
            return  # it looked whether somebody is here (Importer.reach)
        if not isinstance(opening, (Open, Probe)):
            raise ProtocolError(f"{type(opening).__name__} instead of Open")
        if self._closed:
            return
        if isinstance(opening, Probe):
            await self._probes.serve(connection, opening, busy=bool(self._book.exports))
            return
        session = HolderSession(connection, opening, self._book, self._buffers, self._config)
        await session.run()
