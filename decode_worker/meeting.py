"""Whether the KV endpoints of prefill workers answer from here, told before a request needs them.

One task a peer; the connection is closed again at once. Then each transport that both have is
measured (kvtransfer/rate_probe.py), and a second Met says how fast the one in use is. Says what is
so now and nothing about later: a read dials anew. Not covered: trying again (a request does).
"""

from __future__ import annotations

import asyncio

from kvtransfer.importer import Importer
from kvtransfer.rate_probe import RateProbe, WayRate
from pdserve.errors import PeerUnreachable, TransferError
from pdserve.log import event_log
from pdserve.messages import Met, Peer
from pdserve.roles import EventSink
from pdserve.types import KVLayout

_log = event_log(__name__)


class Meeting:
    """Tries of one decode worker, for all its routers."""

    def __init__(self, importer: Importer, probe: RateProbe | None = None) -> None:
        self._importer = importer
        self._probe = probe
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
        if transport and self._probe is not None and self._probe.enabled and peer.layout:
            await self._measure(self._probe, peer, peer.layout, transport, sink)

    async def _measure(
        self, probe: RateProbe, peer: Peer, layout: KVLayout, used: str, sink: EventSink
    ) -> None:
        """The transport in use first, then the others that could be."""
        ways = [each for each in peer.endpoints if each.transport in self._importer.dialers]
        ways.sort(key=lambda each: each.transport != used)
        others: list[str] = []
        rate: WayRate | None = None
        for endpoint in ways:
            try:
                found = await probe.measure(endpoint, layout)
            except TransferError as error:
                _log.info("kv_way_not_measured", peer=peer.worker_id,
                          transport=endpoint.transport, error=error)  # fmt: skip
                continue
            if found is None:
                break  # never a quiet moment
            if endpoint.transport == used:
                rate = found
                sink.emit(_met(peer, found))
            else:
                others.append(_words(found))
        if rate is not None:
            _log.info("kv_way_measured", peer=peer.worker_id, used=_words(rate),
                      others=", ".join(others) or None)  # fmt: skip


def _met(peer: Peer, rate: WayRate) -> Met:
    return Met(
        peer.worker_id, peer.incarnation, rate.transport,
        bytes_per_s=rate.bytes_per_s, num_bytes=rate.num_bytes,
    )  # fmt: skip


def _words(rate: WayRate) -> str:
    return f"{rate.transport} {rate.bytes_per_s / 1e9:.2f} GB/s of {rate.num_bytes / 1e6:.1f} MB"
