"""A stand-in for the router behind the public gRPC face: says what it was told to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from pdserve.errors import PdserveError, RequestCancelled, UnknownDecision, UnknownRequest
from pdserve.explained import Candidate, CostPart, RequestDecisions, RouteDecision
from pdserve.public import (
    ClusterStatusView,
    GenerateDelta,
    GenerateJob,
    KvPairView,
    RequestRecord,
    Usage,
    WorkerView,
)
from pdserve.request_start import AT_ONCE, Arrival
from pdserve.request_timing import RequestTiming
from pdserve.types import (
    Endpoint,
    FinishReason,
    ModelInfo,
    Role,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)

MODEL = ModelInfo("tiny", "fingerprint", 300, 512, (1, 2))
TIMING = RequestTiming(
    tokenize_s=0.001,
    queue_s=0.25,
    prefill_compute_s=0.5,
    kv_bytes=123456,
    kv_transport="grpc",
    prefill_worker="p0",
    decode_worker="d0",
    num_dispatches=1,
)
RECORD = RequestRecord("req-scripted", "stop", TIMING)
DECISIONS = RequestDecisions(
    "req-scripted", "cost", True,
    (
        RouteDecision(
            1, 0.25, "", "remote", "always", 30, 50, 60, 2,
            (
                Candidate(
                    WorkerId("p0"), "prefill", True, "costs least", (), ("its session's",),
                    (CostPart("queue", 0.5), CostPart("compute", 0.25)), 16, 3, 2, 60,
                ),
                Candidate(
                    WorkerId("d0"), "decode", False, "", ("draining", "full"), (),
                    (CostPart("step", 0.125),), 0, 0, 9, -1,
                ),
            ),
            5, "lost",
        ),
        RouteDecision(0, 0.5, "no decode worker", "", "", 31, 50, 60, 1, ()),
    ),
)  # fmt: skip
STATUS = ClusterStatusView(
    can_serve=True,
    mode="disaggregated",
    model=MODEL,
    workers=(
        WorkerView(
            WorkerId("p0"),
            "i0",
            Role.PREFILL,
            "cpu, 1 thread",
            WorkerLimits(512, 64, 32, 8, 300),
            WorkerStatus(step=3, free_blocks=60, total_blocks=64),
            (Endpoint("grpc", "127.0.0.1:1"),),
            2,
            True,
            "ipv4:127.0.0.1:5",
        ),
    ),
    num_queued=4,
    num_in_flight=5,
    num_tickets=6,
    kv_pairs=(KvPairView(WorkerId("p0"), WorkerId("d0"), "shm", 3, 4096, 2e9),),
)
ANSWER = (
    GenerateDelta("Hello", (5,)),
    GenerateDelta("", (6,)),
    GenerateDelta(" wörld", (7, 8), (), FinishReason.STOP, Usage(3, 4)),
)


class ScriptedStream:
    """Yields ``deltas``, then raises ``error``, or waits for ever where that is Ellipsis."""

    def __init__(self, deltas: Sequence[GenerateDelta], error: object) -> None:
        self._deltas = iter(deltas)
        self._error = error
        self.cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.num_sent = 0
        self.num_first_pieces = 0  # how often it was told

    @property
    def request_id(self) -> str:
        return "req-scripted"

    @property
    def timing(self) -> RequestTiming:
        return TIMING

    def first_piece_sent(self) -> None:
        self.num_first_pieces += 1

    def cancel(self, reason: str) -> None:
        if not self.cancelled.done():
            self.cancelled.set_result(reason)

    def __aiter__(self) -> AsyncIterator[GenerateDelta]:
        return self

    async def __anext__(self) -> GenerateDelta:
        for delta in self._deltas:
            self.num_sent += 1
            return delta
        if isinstance(self._error, PdserveError):
            raise self._error
        if self._error is Ellipsis:
            raise RequestCancelled(await asyncio.shield(self.cancelled))
        raise StopAsyncIteration


class ScriptedBackend:
    """Satisfies ``InferenceBackend``.

    ``jobs``, ``arrivals`` and ``streams`` keep what was asked and given.
    """

    def __init__(
        self,
        deltas: Sequence[GenerateDelta] = ANSWER,
        *,
        error: object = None,
        refusal: PdserveError | None = None,
    ) -> None:
        self._deltas = deltas
        self._error = error
        self._refusal = refusal
        self.jobs: list[GenerateJob] = []
        self.arrivals: list[Arrival] = []
        self.streams: asyncio.Queue[ScriptedStream] = asyncio.Queue()

    async def generate(self, job: GenerateJob, *, arrival: Arrival = AT_ONCE) -> ScriptedStream:
        self.jobs.append(job)
        self.arrivals.append(arrival)
        if self._refusal is not None:
            raise self._refusal
        stream = ScriptedStream(self._deltas, self._error)
        self.streams.put_nowait(stream)
        return stream

    def models(self) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    def cluster_status(self) -> ClusterStatusView:
        return STATUS

    def request_record(self, request_id: str) -> RequestRecord:
        if request_id != RECORD.request_id:
            raise UnknownRequest(f"no request {request_id!r}")
        return RECORD

    def explain(self, request_id: str) -> RequestDecisions:
        if request_id != DECISIONS.request_id:
            raise UnknownDecision(f"no decision of {request_id!r}")
        return DECISIONS
