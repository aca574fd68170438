"""The messages of a worker's session as bytes and back.

``FromWorker`` and ``ToWorker`` of pdserve/messages.py, each one protobuf message of
proto/pdserve/v1/worker_service.proto. Reading raises ProtocolError for bytes that are not protobuf,
missing messages and unknown enum values, and UnknownMessage for a message of an unknown kind.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from pdserve.clock import Clock
from pdserve.errors import ProtocolError, UnknownMessage
from pdserve.messages import (
    CacheChanges,
    Cancel,
    Drain,
    FromWorker,
    Goodbye,
    Hello,
    Meet,
    Peer,
    ResendCache,
    StepReport,
    Submit,
    ToWorker,
    Welcome,
)
from pdserve.prefix_keys import HASH_BYTES
from pdserve.rpc import codec_values as values
from pdserve.rpc.codec_events import event_from_pb, event_to_pb
from pdserve.types import RequestId, WorkerId
from pdserve.v1 import worker_service_pb2 as pb


def encode_from_worker(message: FromWorker) -> bytes:
    match message:
        case StepReport():
            union = pb.FromWorker(step_report=_report_to_pb(message))
        case Hello():
            union = pb.FromWorker(hello=_hello_to_pb(message))
        case Goodbye():
            union = pb.FromWorker(goodbye=pb.Goodbye(reason=message.reason))
    return union.SerializeToString()


def decode_from_worker(data: bytes) -> FromWorker:
    """Raises ProtocolError (its leaf UnknownMessage included)."""
    try:
        union = pb.FromWorker.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"FromWorker: {error}") from error
    match union.WhichOneof("message"):
        case "step_report":
            return _report_from_pb(union.step_report)
        case "hello":
            return _hello_from_pb(union.hello)
        case "goodbye":
            return Goodbye(union.goodbye.reason)
    raise UnknownMessage("FromWorker of an unknown kind")


def encode_to_worker(message: ToWorker, clock: Clock) -> bytes:
    """Deadlines become time left by ``clock``."""
    match message:
        case Submit():
            union = pb.ToWorker()
            _write_submit(union.submit, message, clock)
        case Cancel():
            union = pb.ToWorker(
                cancel=pb.Cancel(
                    request_id=message.request_id, epoch=message.epoch, reason=message.reason
                )
            )
        case Welcome():
            welcome = pb.Welcome(router_id=message.router_id, heartbeat_s=message.heartbeat_s)
            union = pb.ToWorker(welcome=welcome)
        case Drain():
            union = pb.ToWorker(drain=pb.Drain(grace_s=message.grace_s))
        case Meet():
            union = pb.ToWorker(meet=pb.Meet(peers=[_peer_to_pb(peer) for peer in message.peers]))
        case ResendCache():
            union = pb.ToWorker(resend_cache=pb.ResendCache())
    return union.SerializeToString()


def decode_to_worker(data: bytes, clock: Clock) -> ToWorker:
    """Time left becomes a deadline on ``clock``. Raises ProtocolError (UnknownMessage included)."""
    try:
        union = pb.ToWorker.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"ToWorker: {error}") from error
    match union.WhichOneof("message"):
        case "submit":
            return _submit_from_pb(union.submit, clock)
        case "cancel":
            cancel = union.cancel
            return Cancel(RequestId(cancel.request_id), cancel.epoch, cancel.reason)
        case "welcome":
            return Welcome(union.welcome.router_id, union.welcome.heartbeat_s)
        case "drain":
            return Drain(union.drain.grace_s)
        case "meet":
            return Meet(tuple(_peer_from_pb(peer) for peer in union.meet.peers))
        case "resend_cache":
            return ResendCache()
    raise UnknownMessage("ToWorker of an unknown kind")


def _peer_to_pb(peer: Peer) -> pb.Peer:
    return pb.Peer(
        worker_id=peer.worker_id,
        incarnation=peer.incarnation,
        endpoints=values.endpoints_to_pb(peer.endpoints),
        layout=None if peer.layout is None else values.layout_to_pb(peer.layout),
    )


def _peer_from_pb(message: pb.Peer) -> Peer:
    endpoints = values.endpoints_from_pb(message.endpoints)
    layout = values.layout_from_pb(message.layout) if message.HasField("layout") else None
    return Peer(WorkerId(message.worker_id), message.incarnation, endpoints, layout)


def _write_submit(message: pb.Submit, submit: Submit, clock: Clock) -> None:
    message.submit_seq = submit.submit_seq
    message.leg = values.LEG_TO_PB[submit.leg]
    values.write_attempt(message.attempt, submit.attempt, clock)
    if submit.ticket is not None:
        message.ticket.CopyFrom(values.ticket_to_pb(submit.ticket))


def _submit_from_pb(message: pb.Submit, clock: Clock) -> Submit:
    values.require(message, "attempt")
    return Submit(
        submit_seq=message.submit_seq,
        leg=values.known(values.LEG_FROM_PB, message.leg, "Submit.leg"),
        attempt=values.attempt_from_pb(message.attempt, clock),
        ticket=values.ticket_from_pb(message.ticket) if message.HasField("ticket") else None,
    )


def _hello_to_pb(hello: Hello) -> pb.Hello:
    return pb.Hello(
        protocol_version=hello.protocol_version,
        worker_id=hello.worker_id,
        incarnation=hello.incarnation,
        role=values.ROLE_TO_PB[hello.role],
        model_name=hello.model_name,
        model_fingerprint=hello.model_fingerprint,
        layout=values.layout_to_pb(hello.layout),
        limits=values.limits_to_pb(hello.limits),
        endpoints=values.endpoints_to_pb(hello.endpoints),
        device=hello.device,
        kv_codings=hello.kv_codings,
    )


def _hello_from_pb(message: pb.Hello) -> Hello:
    values.require(message, "layout", "limits")
    return Hello(
        protocol_version=message.protocol_version,
        worker_id=WorkerId(message.worker_id),
        incarnation=message.incarnation,
        role=values.known(values.ROLE_FROM_PB, message.role, "Hello.role"),
        model_name=message.model_name,
        model_fingerprint=message.model_fingerprint,
        layout=values.layout_from_pb(message.layout),
        limits=values.limits_from_pb(message.limits),
        endpoints=values.endpoints_from_pb(message.endpoints),
        device=message.device,
        kv_codings=tuple(message.kv_codings),
    )


def _report_to_pb(report: StepReport) -> pb.StepReport:
    return pb.StepReport(
        events=[event_to_pb(event) for event in report.events],
        status=values.status_to_pb(report.status),
        cache=None if report.cache is None else _cache_to_pb(report.cache),
    )


def _report_from_pb(message: pb.StepReport) -> StepReport:
    values.require(message, "status")
    return StepReport(
        events=tuple(event_from_pb(event) for event in message.events),
        status=values.status_from_pb(message.status),
        cache=_cache_from_pb(message.cache) if message.HasField("cache") else None,
    )


def _cache_to_pb(changes: CacheChanges) -> pb.CacheChanges:
    return pb.CacheChanges(
        seq=changes.seq,
        stored=changes.stored,
        evicted=changes.evicted,
        is_reset=changes.is_reset,
    )


def _cache_from_pb(message: pb.CacheChanges) -> CacheChanges:
    for name, hashes in (("stored", message.stored), ("evicted", message.evicted)):
        if len(hashes) % HASH_BYTES:
            raise ProtocolError(f"CacheChanges.{name}: {len(hashes)} bytes are no whole hashes")
    return CacheChanges(message.seq, message.stored, message.evicted, message.is_reset)
