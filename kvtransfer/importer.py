"""The reader's end of the road: redeem a ticket, get verified KV in own blocks.

Knows neither requests nor the pool: room comes from the caller, who alone decides who gets blocks.
Never retries.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace

from kvtransfer.codec import encode
from kvtransfer.config import TransferConfig
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Ack, FinishedAtPrefill, Nack, Open
from kvtransfer.reader_session import ImportedKv, MakeRoom, ReaderSession
from kvtransfer.store import BlockBuffers
from kvtransfer.transports.base import Connection, Dialer
from pdserve.clock import Clock
from pdserve.errors import PeerUnreachable, TransferError
from pdserve.log import event_log
from pdserve.types import Endpoint, TransferTicket, WorkerId

__all__ = ["FinishedAtPrefill", "ImportedKv", "Importer", "MakeRoom"]

TRY_S = 1.0  # for an endpoint that is not the last
SHUN_S = 60.0

_log = event_log(__name__)


class Importer:
    """Redeems tickets for one worker. ``dialers``: by transport name; they stay the caller's."""

    def __init__(
        self,
        buffers: BlockBuffers,
        clock: Clock,
        config: TransferConfig,
        worker_id: WorkerId,
        incarnation: str,
        dialers: Mapping[str, Dialer],
    ) -> None:
        self._buffers = buffers
        self._clock = clock
        self._config = config
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._dialers = dict(dialers)
        self._shunned: dict[Endpoint, float] = {}  # not to be tried before
        self._farewells: set[asyncio.Task[None]] = set()
        self._num_reads = 0
        self.quiet, self.busy = asyncio.Event(), asyncio.Event()  # no read runs; one does
        self.quiet.set()

    @property
    def dialers(self) -> Mapping[str, Dialer]:
        return self._dialers

    @property
    def worker_id(self) -> WorkerId:
        return self._worker_id

    async def redeem(
        self, ticket: TransferTicket, make_room: MakeRoom, intake: IntakeBudget
    ) -> ImportedKv:
        """Read the KV of a ticket, for as long as its holder lives and offers it.

        What the first blocks of the lease hold already (``num_cached``) is not read again.
        ``make_room(num_tokens)`` is awaited once the holder is ready; it may wait, and is cancelled
        when the read ends before it returns. On success the lease is the caller's; on any failure
        and on cancellation it has been released, no copy into it runs, and the connection is
        closed.

        Raises:
            TransferError: a leaf: FrameCorrupt, LayoutMismatch, PeerSilent, PeerUnreachable,
                StaleEpoch, TicketExpired, TicketUnknown (the decode worker reports KvFailed).
            FinishedAtPrefill: the first token was the last one; there is nothing to take over.
            EngineFailure: the own device failed to copy.
        """
        self._reads(1)
        try:
            endpoint, connection = await self._dial(ticket.endpoints)
            reader = ReaderSession(connection, ticket, self._buffers, self._config, self._clock)
            imported = await self._read(reader, connection, ticket, make_room, intake, endpoint)
            if passed_over := self._before(endpoint, ticket.endpoints):
                timing = replace(imported.timing, passed_over=passed_over)
                return replace(imported, timing=timing)
            return imported
        finally:
            self._reads(-1)

    def _reads(self, change: int) -> None:
        self._num_reads += change
        for event, holds in ((self.quiet, not self._num_reads), (self.busy, self._num_reads)):
            if holds:
                event.set()
            else:
                event.clear()

    async def connect(self, endpoint: Endpoint) -> Connection:
        """To this one or none; waits as for one of several. Raises PeerUnreachable."""
        return await self._dial_one(endpoint, TRY_S)

    async def reach(self, endpoints: tuple[Endpoint, ...]) -> str:
        """The transport by which a holder answers now, as ``redeem`` would choose it.

        Raises:
            PeerUnreachable: no common transport, or nobody answers at the last of them.
        """
        endpoint, connection = await self._dial(endpoints)
        await connection.close()
        return endpoint.transport

    async def close(self) -> None:
        """Wait for holders to take the last word of reads that are over (bounded)."""
        if self._farewells:
            await asyncio.wait(set(self._farewells))

    async def _read(
        self,
        reader: ReaderSession,
        connection: Connection,
        ticket: TransferTicket,
        make_room: MakeRoom,
        intake: IntakeBudget,
        endpoint: Endpoint,
    ) -> ImportedKv:
        opening = Open(
            ticket.ticket_id, ticket.epoch, self._worker_id, self._incarnation, self._buffers.layout
        )
        last_word: Ack | Nack | None = None
        try:
            imported = await reader.run(opening, make_room, intake, endpoint.transport)
            last_word = Ack()
            return imported
        except TransferError as error:
            last_word = Nack(error.code, str(error)[:1000])
            raise
        finally:
            if not isinstance(last_word, Ack):
                reader.abandon()
            if last_word is None:
                await connection.close()
            else:
                self._part(connection, last_word)

    async def _dial(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, Connection]:
        """The first endpoint, in the holder's order, that can be reached by a transport of ours."""
        common = [each for each in endpoints if each.transport in self._dialers]
        if not common:
            offered = ", ".join(endpoint.transport for endpoint in endpoints) or "nothing"
            ours = ", ".join(self._dialers) or "nothing"
            raise PeerUnreachable(f"no common transport: holder has {offered}, reader has {ours}")
        *better, last = common
        for endpoint in better:
            if self._shunned.get(endpoint, -math.inf) > self._clock.now():
                continue
            try:
                return endpoint, await self._dial_one(endpoint, TRY_S)
            except PeerUnreachable as error:
                self._shun(endpoint, error)
        return last, await self._dial_one(last, self._config.open_timeout_s)

    def _before(self, endpoint: Endpoint, endpoints: tuple[Endpoint, ...]) -> str:
        """What ``_dial`` passed over for this one."""
        common = [each for each in endpoints if each.transport in self._dialers]
        return ",".join(each.transport for each in common[: common.index(endpoint)])

    def _shun(self, endpoint: Endpoint, error: PeerUnreachable) -> None:
        """A port behind a firewall costs the first read its wait, not every one."""
        now_s = self._clock.now()
        self._shunned = {each: until for each, until in self._shunned.items() if until > now_s}
        self._shunned[endpoint] = now_s + SHUN_S
        _log.info("kv_endpoint_passed_over", transport=endpoint.transport,
                  address=endpoint.address, error=str(error),
                  next=f"the holder's next endpoint is used for {SHUN_S:g} s")  # fmt: skip

    async def _dial_one(self, endpoint: Endpoint, timeout_s: float) -> Connection:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._dialers[endpoint.transport].dial(endpoint.address)
        except TimeoutError:
            raise PeerUnreachable(
                f"{endpoint.transport} {endpoint.address}: no connection in {timeout_s:g} s"
            ) from None

    def _part(self, connection: Connection, last_word: Ack | Nack) -> None:
        """Say the last word beside the caller's way: decoding need not wait for it."""
        task = asyncio.create_task(self._farewell(connection, last_word))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _farewell(self, connection: Connection, last_word: Ack | Nack) -> None:
        """Send it and wait for the holder to end the stream: closing first could overtake it."""
        try:
            async with asyncio.timeout(self._config.farewell_timeout_s):
                await connection.send(encode(last_word))
                while True:
                    await connection.receive()
        except PeerUnreachable:
            pass
        except TimeoutError:
            _log.info("kv_holder_lingers", peer=connection.peer)
        finally:
            await connection.close()
