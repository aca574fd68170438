"""How KV goes between each prefill and decode worker, as their reads tell it: for people.

One entry a pair that was tried or used: the transport, how fast it was when the decode worker
measured it at meeting, what reads moved and how fast. A read's time
is that of its ledger (first frame to verified commit) and contains the holder's waiting for its own
chunks, so the figure is what requests got, a lower bound of what the way can carry. Nothing is
decided by it. Pure; a worker that leaves takes its pairs along.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.public import KvPairView
from pdserve.types import KvTiming, WorkerId

ONE_HOST = "shm"  # not to be reached from another host: no fallback
KEPT = 0.9  # of the weight of earlier reads, at each new one

Pair = tuple[WorkerId, WorkerId]  # prefill, decode


@dataclass(slots=True)
class _Way:
    transport: str = ""
    probe_bytes_per_s: float = 0.0  # by ``transport``
    probe_bytes: int = 0
    num_reads: int = 0
    num_bytes: int = 0
    num_fallbacks: int = 0
    recent_bytes: float = 0.0
    recent_s: float = 0.0

    def use(self, transport: str) -> None:
        """What was measured of another one says nothing of this."""
        if transport != self.transport:
            self.transport, self.probe_bytes_per_s, self.probe_bytes = transport, 0.0, 0


class KvPairs:
    def __init__(self) -> None:
        self._ways: dict[Pair, _Way] = {}

    def met(self, pair: Pair, transport: str, bytes_per_s: float = 0.0, num_bytes: int = 0) -> None:
        """The decode worker reached the prefill worker by this transport; 0: not measured."""
        way = self._way(pair)
        way.use(transport)
        if bytes_per_s:
            way.probe_bytes_per_s, way.probe_bytes = bytes_per_s, num_bytes

    def read(self, pair: Pair, timing: KvTiming) -> None:
        """KV was verified; nothing came over if all of it was there already."""
        way = self._way(pair)
        way.use(timing.transport)
        way.num_reads += 1
        way.num_bytes += timing.num_bytes
        way.num_fallbacks += timing.passed_over not in ("", ONE_HOST)
        way.recent_bytes = KEPT * way.recent_bytes + timing.num_bytes
        way.recent_s = KEPT * way.recent_s + timing.transfer_s

    def forget(self, worker_id: WorkerId) -> None:
        """The worker is gone."""
        self._ways = {pair: way for pair, way in self._ways.items() if worker_id not in pair}

    def views(self) -> tuple[KvPairView, ...]:
        return tuple(_view(pair, way) for pair, way in sorted(self._ways.items(), key=_by_pair))

    def _way(self, pair: Pair) -> _Way:
        return self._ways.setdefault(pair, _Way())


def _by_pair(item: tuple[Pair, _Way]) -> Pair:
    return item[0]


def _view(pair: Pair, way: _Way) -> KvPairView:
    return KvPairView(
        prefill_worker=pair[0],
        decode_worker=pair[1],
        transport=way.transport,
        num_reads=way.num_reads,
        num_bytes=way.num_bytes,
        num_fallbacks=way.num_fallbacks,
        read_bytes_per_s=way.recent_bytes / way.recent_s if way.recent_s > 0 else 0.0,
        probe_bytes_per_s=way.probe_bytes_per_s,
        probe_bytes=way.probe_bytes,
    )
