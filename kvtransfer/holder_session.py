"""One reader's connection as the holder sees it (docs/protocol.md section 5, holder's table).

Two tasks: one receives what the reader says and notes it, the other sends what can be sent; the
second sleeps on one event that everything wakes. Frames are copied out of the blocks when they are
sent, and the lease is pinned just for the copy, so an ended export frees its blocks at once (on a
device: once the running copy has ended) even if a reader is slow. Over a lane frames are sent out
of the blocks, pinned meanwhile; an ended export waits ``farewell_timeout_s`` for that. Blocks named
to a reader that reads them in place stay pinned until it credits them or is gone (lent_blocks.py).
Does not decide who gets a ticket (ticket_book.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from kvtransfer.block_bytes import block_pieces
from kvtransfer.codec import decode, encode
from kvtransfer.coding import CODINGS, EXACT, coded_block_bytes
from kvtransfer.config import MIB, TransferConfig
from kvtransfer.digest import ReadDigest, payload_checksum
from kvtransfer.export import Export
from kvtransfer.lent_blocks import LentBlocks
from kvtransfer.messages import (
    Accept,
    Ack,
    Alive,
    Commit,
    Credit,
    Finished,
    FirstTokenInfo,
    Frame,
    KvMessage,
    Nack,
    Open,
    Ready,
    Refused,
    transfer_error,
)
from kvtransfer.store import BlockBuffers
from kvtransfer.ticket_book import TicketBook
from kvtransfer.transports.base import Connection
from pdserve.errors import (
    FrameCorrupt,
    PdserveError,
    PeerSilent,
    PeerUnreachable,
    ProtocolError,
    TicketUnknown,
)
from pdserve.log import event_log
from pdserve.types import KVLayout

MAX_LENT_BLOCKS = 4096  # named in one frame: its header has a limit
FIRST_FRAME_BYTES = MIB  # then twice as much each time: a reader waits for the first one's sum

_log = event_log(__name__)


class HolderSession:
    """Serves one reader from its Open to the end of its stream. ``run`` once."""

    def __init__(
        self,
        connection: Connection,
        opening: Open,
        book: TicketBook,
        buffers: BlockBuffers,
        config: TransferConfig,
    ) -> None:
        self._connection = connection
        self._opening = opening
        self._book = book
        self._buffers = buffers
        self._config = config
        self._wake = asyncio.Event()
        self._export: Export | None = None
        self._position: int | None = None  # next token to send; None before Accept
        self._credit_bytes = 0
        self._in_place = False
        self._coding = EXACT
        self._block_bytes = buffers.layout.block_bytes  # of one block as it is sent
        self._frame_bytes = min(FIRST_FRAME_BYTES, config.max_frame_bytes)  # at most, the next one
        self._lent = LentBlocks()
        self._seq = 0
        self._digest = ReadDigest()
        self._commit_sent = False
        self._over = False
        self._patience: asyncio.Timeout | None = None  # of a send that is under way
        self._farewell: Refused | Finished | None = None
        self._failure: PdserveError | None = None

    def wake(self) -> None:
        self._wake.set()

    def cut(self, farewell: Refused | Finished) -> None:
        """Send this as the last message and end."""
        self._farewell = farewell
        self._end()

    async def run(self) -> None:
        """Raises PdserveError if the reader failed; the export is held then."""
        receiving = asyncio.create_task(self._receive_all())
        try:
            await self._serve()
        except PdserveError as error:
            self._failure = self._failure or error
        finally:
            if self._export is not None:
                gone = self._failure or PeerUnreachable("the reader is gone")
                self._export.detach(self, gone)
            await self._end_receiving(receiving)
        if self._failure is not None:
            raise self._failure

    async def _end_receiving(self, receiving: asyncio.Task[None]) -> None:
        """A reader that may still read in place gets a moment to end that, or to go."""
        timeout_s = self._config.farewell_timeout_s if self._lent.num_bytes else 0.0
        if timeout_s and not await self._lent.returned(receiving, timeout_s):
            _log.warning("kv_blocks_taken_back", peer=self._connection.peer)
        self._lent.take_back()
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)

    # --- what is sent -------------------------------------------------------------------------

    async def _serve(self) -> None:
        export = await self._find_export()
        if export is not None:
            export.attach(self)
            self._export = export
            await self._send(Ready(export.num_tokens))
            while not self._over:
                if not await self._send_next(export):
                    await self._woken_or_alive()
        if self._farewell is not None:
            await self._send(self._farewell)

    async def _find_export(self) -> Export | None:
        """The export this reader may read; None after setting what it is told instead."""
        ticket_id = self._opening.ticket_id
        self._book.watch(ticket_id, self)
        try:
            async with asyncio.timeout(self._config.open_timeout_s):
                while not self._over:
                    found = self._book.find(self._opening)
                    if isinstance(found, Export):
                        return found
                    if found is not None:
                        self.cut(found)
                    else:
                        await self._woken()
        except TimeoutError:
            self.cut(Refused(TicketUnknown.code, f"ticket {ticket_id} was not offered here"))
        finally:
            self._book.unwatch(ticket_id, self)
        return None

    async def _woken(self) -> None:
        self._wake.clear()
        if not self._over:
            await self._wake.wait()

    async def _woken_or_alive(self) -> None:
        """As ``_woken``; a reader that waits for frames hears now and then that this end lives."""
        is_awaited = self._position is not None and not self._commit_sent
        try:
            async with asyncio.timeout(self._config.alive_every_s if is_awaited else None):
                await self._woken()
        except TimeoutError:
            await self._send(Alive())

    async def _send_next(self, export: Export) -> bool:
        """Send the next Frame or Commit; False: nothing to send now."""
        if self._position is None or self._commit_sent:
            return False
        if self._position == export.num_tokens:
            commit = self._commit(export, export.first_token)
            if commit is not None:
                await self._send(commit)
            return commit is not None
        end = self._end_of_frame(self._position, export)
        if end <= self._position:
            return False
        await self._send_frame(export, self._position, end)
        return True

    async def _send_frame(self, export: Export, start: int, end: int) -> None:
        """Without a lane the payload is copied under the pin; with one it is sent under it."""
        layout, lane = self._buffers.layout, self._connection.lane
        blocks = range(start // layout.block_size, layout.num_blocks(end))
        export.lease.pin()
        try:
            block_ids = tuple(export.lease.block_at(index) for index in blocks)
            pieces = await block_pieces(self._buffers, block_ids)
            if self._over:
                return  # cut while the device copied
            if self._coding != EXACT:
                pieces = (_compressed(layout, self._coding, pieces, end - start),)
            num_bytes = sum(piece.nbytes for piece in pieces)
            frame = self._frame(export, start, end, pieces, block_ids)
            self._position = end
            self._seq += 1
            self._frame_bytes = min(2 * self._frame_bytes, self._config.max_frame_bytes)
            self._credit_bytes -= num_bytes
            export.touch()
            self._digest.add(frame.xxh3)
            export.bytes_sent += num_bytes
            if self._in_place:
                self._lent.lend(export.lease, num_bytes)
            elif lane is not None:
                await self._sent(lane.send(encode(frame, apart=True), frame.pieces))
                return
            data = encode(frame)
        finally:
            export.lease.unpin()
        await self._sent(self._connection.send(data))

    def _commit(self, export: Export, first_token: FirstTokenInfo | None) -> Commit | None:
        if first_token is None:
            return None
        self._commit_sent = True
        return Commit(
            ticket_id=export.ticket.ticket_id,
            epoch=export.ticket.epoch,
            num_frames=self._digest.num_frames,
            num_tokens=export.num_tokens,
            digest=self._digest.value(export.num_tokens),
            first_token=first_token,
        )

    def _frame(
        self,
        export: Export,
        start: int,
        end: int,
        pieces: tuple[memoryview, ...],
        block_ids: tuple[int, ...],
    ) -> Frame:
        """Of these pieces; in place it names their blocks instead."""
        layout = self._buffers.layout
        return Frame(
            ticket_id=export.ticket.ticket_id,
            epoch=export.ticket.epoch,
            seq=self._seq,
            first_token=start,
            num_tokens=end - start,
            first_layer=0,
            num_layers=layout.num_layers,
            first_head=layout.first_kv_head,
            num_heads=layout.num_kv_heads,
            dtype=layout.dtype if self._coding == EXACT else self._coding,
            xxh3=payload_checksum(pieces),
            pieces=() if self._in_place else pieces,
            block_ids=block_ids if self._in_place else (),
        )

    async def _send(self, message: KvMessage) -> None:
        await self._sent(self._connection.send(encode(message)))

    async def _sent(self, sending: Awaitable[None]) -> None:
        """Wait for it; once this read is over, only for a moment."""
        timeout_s = self._config.farewell_timeout_s if self._over else self._config.send_timeout_s
        try:
            async with asyncio.timeout(timeout_s) as self._patience:
                await sending
        except TimeoutError:
            raise PeerSilent(f"reader took nothing for {timeout_s:g} s") from None
        finally:
            self._patience = None

    # --- what is received ---------------------------------------------------------------------

    async def _receive_all(self) -> None:
        try:
            while not self._over or self._lent.num_bytes:
                self._note(decode(await self._connection.receive()))
        except PdserveError as error:
            self._end(error)

    def _note(self, message: KvMessage) -> None:
        match message:
            case Accept() if self._export is not None and self._position is None:
                self._start_sending(message, self._export)
            case Credit() if self._position is not None and self._export is not None:
                self._credit_bytes += message.num_bytes
                self._export.touch()
                self._lent.give_back(message.num_bytes)
            case Ack() if self._commit_sent and self._export is not None:
                self._lent.take_back()
                self._export.acknowledge(self)
                self._end()
            case Nack():
                self._lent.take_back()
                self._end(transfer_error(message.code, message.detail))
            case _:
                self._end(ProtocolError(f"{type(message).__name__} out of order"))
        self._wake.set()

    def _start_sending(self, accept: Accept, export: Export) -> None:
        layout = self._buffers.layout
        if accept.coding not in (EXACT, *CODINGS):
            self._end(ProtocolError(f"coding {accept.coding!r} is not known here"))
            return
        self._coding = accept.coding
        self._block_bytes = coded_block_bytes(layout, accept.coding)
        if accept.credit_bytes < self._block_bytes:
            self._end(ProtocolError(f"credit_bytes {accept.credit_bytes} is less than one block"))
        elif accept.from_token % layout.block_size or accept.from_token > export.num_tokens:
            self._end(FrameCorrupt(f"from_token {accept.from_token} is no block boundary"))
        elif accept.in_place and self._buffers.memory_fd is None:
            self._end(ProtocolError("in_place: these blocks cannot be read in place"))
        elif accept.in_place and accept.coding != EXACT:
            self._end(ProtocolError("in_place: blocks read in place are exact"))
        else:
            export.touch()
            self._position = accept.from_token
            self._credit_bytes = accept.credit_bytes
            self._in_place = accept.in_place

    def _end(self, failure: PdserveError | None = None) -> None:
        if not self._over:
            self._over = True
            self._failure = failure
            if self._patience is not None:  # a send from pinned blocks must not take its full time
                soon_s = asyncio.get_running_loop().time() + self._config.farewell_timeout_s
                self._patience.reschedule(min(self._patience.when() or soon_s, soon_s))
        self._wake.set()

    def _end_of_frame(self, start: int, export: Export) -> int:
        """Token at which a frame from ``start`` ends; at most ``start`` if none can be sent now."""
        layout = self._buffers.layout
        num_blocks = max(1, self._frame_bytes // self._block_bytes)
        num_blocks = min(num_blocks, self._credit_bytes // self._block_bytes)
        if self._in_place:
            num_blocks = min(num_blocks, MAX_LENT_BLOCKS)
        computed = export.num_computed
        if computed < export.num_tokens:
            computed -= computed % layout.block_size
        return min(computed, start + num_blocks * layout.block_size)


def _compressed(
    layout: KVLayout, coding: str, pieces: tuple[memoryview, ...], num_tokens: int
) -> memoryview:
    # torch is imported where KV is coded: a process that never does need not have it.
    from kvtransfer.compress import compress

    return compress(layout, coding, pieces, num_tokens)
