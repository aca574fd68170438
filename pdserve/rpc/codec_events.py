"""Worker events of pdserve/messages.py as protobuf messages and back.

The table from a class to its field of the ``WorkerEvent`` union is the only place that names both;
an event that is in the union and not in the table cannot be written (KeyError in the tests), one
that a newer worker sends is an UnknownMessage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pdserve.errors import UnknownMessage
from pdserve.messages import (
    Admitted,
    AlreadyCommitted,
    Busy,
    Committed,
    Ended,
    Failed,
    FirstToken,
    KvFailed,
    Met,
    Tokens,
    WorkerEvent,
)
from pdserve.rpc.codec_values import FINISH_FROM_PB, FINISH_TO_PB, LEG_FROM_PB, LEG_TO_PB
from pdserve.rpc.codec_values import known as _known
from pdserve.rpc.codec_values import require as _require
from pdserve.types import (
    DecodeTiming,
    KvTiming,
    Leg,
    PrefillTiming,
    RequestId,
    TicketId,
    TokenEvent,
    TokenLogprobs,
    WorkerId,
)
from pdserve.v1 import types_pb2 as pb
from pdserve.v1 import worker_service_pb2 as session_pb


def event_to_pb(event: WorkerEvent) -> session_pb.WorkerEvent:
    field, write, _ = _EVENTS[type(event)]
    return session_pb.WorkerEvent(**{field: write(event)})


def event_from_pb(message: session_pb.WorkerEvent) -> WorkerEvent:
    """Raises UnknownMessage for an event of a kind that is not known here."""
    field = message.WhichOneof("event")
    if field is None:
        raise UnknownMessage("WorkerEvent of an unknown kind")
    event: WorkerEvent = _READERS[field](getattr(message, field))
    return event


def _token_to_pb(token: TokenEvent) -> pb.TokenEvent:
    logprobs = token.logprobs
    return pb.TokenEvent(
        request_id=token.request_id,
        epoch=token.epoch,
        index=token.index,
        token_id=token.token_id,
        finish_reason=FINISH_TO_PB[token.finish_reason],
        logprobs=None if logprobs is None else _logprobs_to_pb(logprobs),
    )


def _token_from_pb(message: pb.TokenEvent) -> TokenEvent:
    finish = message.finish_reason
    return TokenEvent(  # by position: names cost a third more
        RequestId(message.request_id),
        message.epoch,
        message.index,
        message.token_id,
        _known(FINISH_FROM_PB, finish, "TokenEvent.finish_reason") if finish else None,
        _logprobs_from_pb(message.logprobs) if message.HasField("logprobs") else None,
    )


def _logprobs_to_pb(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        chosen=logprobs.chosen,
        top=[pb.TokenLogprob(token_id=token_id, logprob=value) for token_id, value in logprobs.top],
    )


def _logprobs_from_pb(message: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(message.chosen, tuple((top.token_id, top.logprob) for top in message.top))


def _first_token_to_pb(event: FirstToken) -> session_pb.FirstToken:
    timing = pb.PrefillTiming(
        queue_s=event.timing.queue_s,
        compute_s=event.timing.compute_s,
        num_cached_tokens=event.timing.num_cached_tokens,
    )
    return session_pb.FirstToken(token=_token_to_pb(event.token), timing=timing)


def _first_token_from_pb(message: session_pb.FirstToken) -> FirstToken:
    _require(message, "token", "timing")
    timing = PrefillTiming(
        message.timing.queue_s, message.timing.compute_s, message.timing.num_cached_tokens
    )
    return FirstToken(_token_from_pb(message.token), timing)


def _tokens_to_pb(event: Tokens) -> session_pb.Tokens:
    message = session_pb.Tokens(tokens=[_token_to_pb(token) for token in event.tokens])
    if event.timing is not None:
        message.timing.queue_s = event.timing.queue_s
        message.timing.first_step_s = event.timing.first_step_s
        message.timing.SetInParent()  # zeros would otherwise leave no trace
    return message


def _tokens_from_pb(message: session_pb.Tokens) -> Tokens:
    timing = message.timing
    return Tokens(
        tuple([_token_from_pb(token) for token in message.tokens]),
        DecodeTiming(timing.queue_s, timing.first_step_s) if message.HasField("timing") else None,
    )


def _committed_to_pb(event: Committed) -> session_pb.Committed:
    timing = event.timing
    return session_pb.Committed(
        request_id=event.request_id,
        ticket_id=event.ticket_id,
        epoch=event.epoch,
        timing=pb.KvTiming(
            transport=timing.transport,
            num_tokens=timing.num_tokens,
            num_bytes=timing.num_bytes,
            transfer_s=timing.transfer_s,
            num_cached_tokens=timing.num_cached_tokens,
            coding=timing.coding,
            passed_over=timing.passed_over,
        ),
    )


def _committed_from_pb(message: session_pb.Committed) -> Committed:
    _require(message, "timing")
    timing = message.timing
    return Committed(
        request_id=RequestId(message.request_id),
        ticket_id=TicketId(message.ticket_id),
        epoch=message.epoch,
        timing=KvTiming(
            transport=timing.transport,
            num_tokens=timing.num_tokens,
            num_bytes=timing.num_bytes,
            transfer_s=timing.transfer_s,
            num_cached_tokens=timing.num_cached_tokens,
            coding=timing.coding,
            passed_over=timing.passed_over,
        ),
    )


def _kv_failed_to_pb(event: KvFailed) -> session_pb.KvFailed:
    return session_pb.KvFailed(
        request_id=event.request_id,
        ticket_id=event.ticket_id,
        epoch=event.epoch,
        code=event.code,
        detail=event.detail,
    )


def _kv_failed_from_pb(message: session_pb.KvFailed) -> KvFailed:
    return KvFailed(
        request_id=RequestId(message.request_id),
        ticket_id=TicketId(message.ticket_id),
        epoch=message.epoch,
        code=message.code,
        detail=message.detail,
    )


def _failed_to_pb(event: Failed) -> session_pb.Failed:
    return session_pb.Failed(
        request_id=event.request_id,
        epoch=event.epoch,
        leg=LEG_TO_PB[event.leg],
        code=event.code,
        detail=event.detail,
    )


def _failed_from_pb(message: session_pb.Failed) -> Failed:
    return Failed(*_leg_of(message), code=message.code, detail=message.detail)


def _busy_to_pb(event: Busy) -> session_pb.Busy:
    return session_pb.Busy(
        request_id=event.request_id,
        epoch=event.epoch,
        leg=LEG_TO_PB[event.leg],
        free_blocks=event.free_blocks,
    )


def _busy_from_pb(message: session_pb.Busy) -> Busy:
    return Busy(*_leg_of(message), free_blocks=message.free_blocks)


def _admitted_to_pb(event: Admitted) -> session_pb.Admitted:
    return session_pb.Admitted(
        request_id=event.request_id, epoch=event.epoch, leg=LEG_TO_PB[event.leg]
    )


def _admitted_from_pb(message: session_pb.Admitted) -> Admitted:
    return Admitted(*_leg_of(message))


def _ended_to_pb(event: Ended) -> session_pb.Ended:
    return session_pb.Ended(
        request_id=event.request_id, epoch=event.epoch, leg=LEG_TO_PB[event.leg]
    )


def _ended_from_pb(message: session_pb.Ended) -> Ended:
    return Ended(*_leg_of(message))


def _already_committed_to_pb(event: AlreadyCommitted) -> session_pb.AlreadyCommitted:
    return session_pb.AlreadyCommitted(
        request_id=event.request_id, epoch=event.epoch, committed_epoch=event.committed_epoch
    )


def _already_committed_from_pb(message: session_pb.AlreadyCommitted) -> AlreadyCommitted:
    return AlreadyCommitted(RequestId(message.request_id), message.epoch, message.committed_epoch)


def _met_to_pb(event: Met) -> session_pb.Met:
    return session_pb.Met(
        worker_id=event.worker_id,
        incarnation=event.incarnation,
        transport=event.transport,
        detail=event.detail,
        bytes_per_s=event.bytes_per_s,
        num_bytes=event.num_bytes,
    )


def _met_from_pb(message: session_pb.Met) -> Met:
    return Met(
        WorkerId(message.worker_id),
        message.incarnation,
        message.transport,
        message.detail,
        message.bytes_per_s,
        message.num_bytes,
    )


def _leg_of(message: Any) -> tuple[RequestId, int, Leg]:
    leg = _known(LEG_FROM_PB, message.leg, f"{type(message).__name__}.leg")
    return RequestId(message.request_id), message.epoch, leg


_EVENTS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    Admitted: ("admitted", _admitted_to_pb, _admitted_from_pb),
    Busy: ("busy", _busy_to_pb, _busy_from_pb),
    FirstToken: ("first_token", _first_token_to_pb, _first_token_from_pb),
    Tokens: ("tokens", _tokens_to_pb, _tokens_from_pb),
    Committed: ("committed", _committed_to_pb, _committed_from_pb),
    KvFailed: ("kv_failed", _kv_failed_to_pb, _kv_failed_from_pb),
    Failed: ("failed", _failed_to_pb, _failed_from_pb),
    AlreadyCommitted: ("already_committed", _already_committed_to_pb, _already_committed_from_pb),
    Ended: ("ended", _ended_to_pb, _ended_from_pb),
    Met: ("met", _met_to_pb, _met_from_pb),
}
_READERS = {field: read for field, _, read in _EVENTS.values()}
