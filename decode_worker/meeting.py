"""Whether the KV endpoints of prefill workers answer from here, told before a request needs them.

One short task a peer; the connection is closed again at once. Says what is so now and nothing about
later: a read dials anew. Not covered: trying again (a request does), how fast the way is.
"""

from __future__ import annotations

import asyncio

from kvtransfer.importer import Importer
from pdserve.errors import PeerUnreachable
from pdserve.log import event_log
from pdserve.messages import Met, Peer
from pdserve.roles import EventSink

_log = event_log(__name__)


class Meeting:
    """Tries of one decode worker, for all its routers."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer
        self._tries: dict[asyncio.Task[None], EventSink] = {}

    def meet(self, peers: tuple[Peer, ...], sink: EventSink) -> None:
        """Emits one Met for each peer, later."""
        for peer in peers:
            task = asyncio.create_task(self._try(peer, sink), name=f"meet {peer.worker_id}")
            self._tries[task] = sink
            task.add_done_callback(self._tries.pop)

    def session_ended(self, sink: EventSink) -> None:
        """Nobody waits for these any more."""
        for task, whose in self._tries.items():
            if whose is sink:
                task.cancel()

    async def close(self) -> None:
        tries = list(self._tries)
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)

    async def _try(self, peer: Peer, sink: EventSink) -> None:
        transport, detail = "", ""
        try:
            transport = await self._importer.reach(peer.endpoints)
        except PeerUnreachable as error:
            detail = str(error)
            _log.warning("kv_peer_unreachable", peer=peer.worker_id, error=error)
        sink.emit(Met(peer.worker_id, peer.incarnation, transport, detail))
