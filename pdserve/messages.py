"""What a router and a worker say to each other over their one session.

Two tagged unions of frozen values: ``ToWorker`` and ``FromWorker``. docs/protocol.md gives the
state tables; pdserve/rpc/codec.py the bytes. Every admitted leg ends in exactly one ``Ended``,
sent when everything the leg held on that worker (blocks, reservation, ticket) is back.

Not here: KV frames (kvtransfer/messages.py), what clients say (proto inference_service).
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.types import (
    Attempt,
    DecodeTiming,
    Endpoint,
    KVLayout,
    KvTiming,
    Leg,
    PrefillTiming,
    RequestId,
    Role,
    TicketId,
    TokenEvent,
    TransferTicket,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)

PROTOCOL_VERSION = 6


# --- router -> worker -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """The worker is in the pool. The router expects a StepReport at least every heartbeat_s."""

    router_id: str
    heartbeat_s: float


@dataclass(frozen=True, slots=True)
class Submit:
    """Do this leg of this attempt. Answered by Admitted or Busy before anything is computed.

    ``ticket`` is None for a colocated leg and for a prefill leg that no decode worker will redeem
    (one token wanted). A prefill Submit whose ticket is still held, with a later epoch, re-arms
    the ticket for another reader instead of computing again.
    """

    submit_seq: int  # counts from 1 in a session
    leg: Leg
    attempt: Attempt
    ticket: TransferTicket | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop every leg of this request whose epoch is at most ``epoch``; unknown ids are ignored."""

    request_id: RequestId
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Admit nothing more (answer Busy), finish what runs, then end the session."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Peer:
    """A prefill worker of the pool and where its KV can be read."""

    worker_id: WorkerId
    incarnation: str
    endpoints: tuple[Endpoint, ...]
    layout: KVLayout | None = None  # of its blocks; None: an older router


@dataclass(frozen=True, slots=True)
class Meet:
    """To a decode worker: KV of these may be read from now on. It tries their endpoints at once and
    answers each with ``Met``, so that a wrong address is known before a request meets it; once it
    has measured the way it says so with another."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class ResendCache:
    """A CacheChanges was missed: begin again with all there is."""


ToWorker = Welcome | Submit | Cancel | Drain | Meet | ResendCache


# --- worker -> router -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a session."""

    protocol_version: int
    worker_id: WorkerId
    incarnation: str
    role: Role
    model_name: str
    model_fingerprint: str
    layout: KVLayout
    limits: WorkerLimits
    endpoints: tuple[Endpoint, ...]  # where this worker's KV can be read; empty for decode
    device: str  # for people: "cpu, 1 thread", "cuda:0 NVIDIA H100"
    # Codings of KV in flight beside "exact": those a prefill worker can send, the one that a decode
    # worker asks for.
    kv_codings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    request_id: RequestId
    epoch: int
    leg: Leg


@dataclass(frozen=True, slots=True)
class Busy:
    """Not admitted, nothing was computed and nothing is held."""

    request_id: RequestId
    epoch: int
    leg: Leg
    free_blocks: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Prefill is done: the first token of this attempt, straight from the prefill worker.

    A terminal token (``token.finish_reason`` set) means that no decode leg is needed: the prefill
    worker ends the KV read with ``Finished`` and the router cancels the decode leg.
    """

    token: TokenEvent
    timing: PrefillTiming


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one sequence from the engine steps of one report (usually one), in order.

    The first report of a decode leg repeats the first token (index ``first_index``), which came
    with the KV, and has no timing. ``timing`` comes once a leg, with the first token that the leg
    itself computed in a decode step (the client's second).
    """

    tokens: tuple[TokenEvent, ...]
    timing: DecodeTiming | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The decode worker holds verified KV: from here on it owns the request."""

    request_id: RequestId
    ticket_id: TicketId
    epoch: int
    timing: KvTiming


@dataclass(frozen=True, slots=True)
class KvFailed:
    """The KV did not arrive at the decode worker; its blocks are back. ``code`` as in errors.py."""

    request_id: RequestId
    ticket_id: TicketId
    epoch: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A leg cannot go on. ``code`` as in errors.py; the router decides whether to try again."""

    request_id: RequestId
    epoch: int
    leg: Leg
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class AlreadyCommitted:
    """A decode Submit came for a request this worker has committed under an earlier epoch."""

    request_id: RequestId
    epoch: int
    committed_epoch: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Everything this leg held on this worker is back. Sent once for each Admitted."""

    request_id: RequestId
    epoch: int
    leg: Leg


@dataclass(frozen=True, slots=True)
class Met:
    """Whether a peer's KV endpoint answers from here. ``transport``: which one did; "": none.

    ``detail`` is for people, empty if one answered. ``bytes_per_s``: how fast KV came by that
    transport in a measurement, of ``num_bytes``; 0: none was made (yet).
    """

    worker_id: WorkerId
    incarnation: str
    transport: str
    detail: str = ""
    bytes_per_s: float = 0.0
    num_bytes: int = 0


LegEvent = (
    Admitted | Busy | FirstToken | Tokens | Committed | KvFailed | Failed | AlreadyCommitted | Ended
)
WorkerEvent = LegEvent | Met


@dataclass(frozen=True, slots=True)
class CacheChanges:
    """Full blocks whose KV came to the worker's prefix cache, or went, since the last one.

    ``seq`` counts from 1 in a session. Hashes are 8 bytes each, joined: the first half of the
    block's digest (docs/protocol.md 8). With ``is_reset`` what was told before is void.
    """

    seq: int
    stored: bytes
    evicted: bytes
    is_reset: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """All events of one engine step, in order, and the status after it. One message a step."""

    events: tuple[WorkerEvent, ...]
    status: WorkerStatus
    cache: CacheChanges | None = None  # None: nothing changed


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The worker leaves by its own will after a drain; everything it held is back."""

    reason: str


FromWorker = Hello | StepReport | Goodbye
