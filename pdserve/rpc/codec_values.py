"""Values of pdserve/types.py as protobuf messages and back, for the session.

Two functions a value, ``*_to_pb`` and ``*_from_pb``. Reading checks what protobuf cannot promise:
known enum values and the presence of messages; a fault is a ProtocolError that names the message
and the field. Nothing is lost: reading what was written gives an equal value, deadlines excepted,
which cross as time left and are put on the reader's clock.

Not here: the messages of the session (codec.py), the public face (codec_public.py).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from google.protobuf.message import Message

from pdserve.clock import Clock
from pdserve.errors import InvalidRequest, ProtocolError
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.tracing import read_context
from pdserve.types import (
    Attempt,
    Endpoint,
    FinishReason,
    KVLayout,
    Leg,
    Request,
    RequestId,
    Role,
    SamplingParams,
    TicketId,
    TransferTicket,
    WorkerId,
    WorkerLimits,
    WorkerStatus,
)
from pdserve.v1 import types_pb2 as pb

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

ROLE_TO_PB = {Role.PREFILL: pb.ROLE_PREFILL, Role.DECODE: pb.ROLE_DECODE}
LEG_TO_PB = {
    Leg.PREFILL: pb.LEG_PREFILL,
    Leg.DECODE: pb.LEG_DECODE,
    Leg.COLOCATED: pb.LEG_COLOCATED,
}
FINISH_TO_PB = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
ROLE_FROM_PB = {number: role for role, number in ROLE_TO_PB.items()}
LEG_FROM_PB = {number: leg for leg, number in LEG_TO_PB.items()}
FINISH_FROM_PB = {number: reason for reason, number in FINISH_TO_PB.items()}


def known(table: dict[KeyT, ValueT], number: KeyT, field: str) -> ValueT:
    """The value of an enum number.

    Raises:
        ProtocolError: the number has no meaning here, UNSPECIFIED included.
    """
    try:
        return table[number]
    except KeyError:
        raise ProtocolError(f"{field}: unknown value {number}") from None


def require(message: Message, *fields: str) -> None:
    """Checks that message fields are there.

    Raises:
        ProtocolError: names the first one that is missing.
    """
    for field in fields:
        if not message.HasField(field):
            raise ProtocolError(f"{type(message).__name__}.{field}: missing")


def sampling_to_pb(sampling: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=[
            pb.LogitBias(token_id=token_id, bias=bias) for token_id, bias in sampling.logit_bias
        ],
        seed=sampling.seed,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        num_logprobs=sampling.num_logprobs,
    )


def sampling_from_pb(message: pb.SamplingParams) -> SamplingParams:
    return SamplingParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in message.logit_bias),
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
    )


def write_attempt(message: pb.Attempt, attempt: Attempt, clock: Clock) -> None:
    """In place, since a long prompt is worth not being copied from message to message."""
    request, written = attempt.request, message.request
    message.epoch = attempt.epoch
    message.forced_ids.extend(attempt.forced_ids)
    written.request_id = request.request_id
    written.prompt_ids.extend(request.prompt_ids)
    written.sampling.CopyFrom(sampling_to_pb(request.sampling))
    written.priority = request.priority
    if request.deadline_s is not None:
        written.time_left_s = request.deadline_s - clock.now()
    written.cache_salt = request.cache_salt
    written.traceparent = request.traceparent


def attempt_from_pb(message: pb.Attempt, clock: Clock) -> Attempt:
    require(message, "request")
    require(message.request, "sampling")
    request = message.request
    has_deadline = request.HasField("time_left_s")
    if math.isnan(request.time_left_s):
        raise ProtocolError("Request.time_left_s: not a number")
    try:
        return Attempt(
            request=Request(
                request_id=RequestId(request.request_id),
                prompt_ids=tuple(request.prompt_ids),
                sampling=sampling_from_pb(request.sampling),
                priority=request.priority,
                deadline_s=clock.now() + request.time_left_s if has_deadline else None,
                cache_salt=request.cache_salt,
                traceparent=read_context(request.traceparent),
            ),
            epoch=message.epoch,
            forced_ids=tuple(message.forced_ids),
        )
    except InvalidRequest as error:
        # The router has checked the request: a bad one here is the router's fault.
        raise ProtocolError(f"Attempt.request: {error}") from error


def layout_to_pb(layout: KVLayout) -> pb.KvLayout:
    return pb.KvLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_size=layout.block_size,
        dtype=layout.dtype,
        first_kv_head=layout.first_kv_head,
        order=layout.order,
    )


def layout_from_pb(message: pb.KvLayout) -> KVLayout:
    return KVLayout(
        num_layers=message.num_layers,
        num_kv_heads=message.num_kv_heads,
        head_dim=message.head_dim,
        block_size=message.block_size,
        dtype=message.dtype,
        first_kv_head=message.first_kv_head,
        order=message.order,
    )


def endpoints_to_pb(endpoints: tuple[Endpoint, ...]) -> list[pb.Endpoint]:
    return [pb.Endpoint(transport=each.transport, address=each.address) for each in endpoints]


def endpoints_from_pb(messages: Any) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(transport=each.transport, address=each.address) for each in messages)


def ticket_to_pb(ticket: TransferTicket) -> pb.TransferTicket:
    return pb.TransferTicket(
        ticket_id=ticket.ticket_id,
        epoch=ticket.epoch,
        worker_id=ticket.worker_id,
        incarnation=ticket.incarnation,
        endpoints=endpoints_to_pb(ticket.endpoints),
        layout=layout_to_pb(ticket.layout),
        num_tokens=ticket.num_tokens,
        expires_in_s=ticket.expires_in_s,
    )


def ticket_from_pb(message: pb.TransferTicket) -> TransferTicket:
    require(message, "layout")
    return TransferTicket(
        ticket_id=TicketId(message.ticket_id),
        epoch=message.epoch,
        worker_id=WorkerId(message.worker_id),
        incarnation=message.incarnation,
        endpoints=endpoints_from_pb(message.endpoints),
        layout=layout_from_pb(message.layout),
        num_tokens=message.num_tokens,
        expires_in_s=message.expires_in_s,
    )


def limits_to_pb(limits: WorkerLimits) -> pb.WorkerLimits:
    return pb.WorkerLimits(
        max_model_len=limits.max_model_len,
        total_blocks=limits.total_blocks,
        chunk_tokens=limits.chunk_tokens,
        max_running=limits.max_running,
        vocab_size=limits.vocab_size,
    )


def limits_from_pb(message: pb.WorkerLimits) -> WorkerLimits:
    return WorkerLimits(
        max_model_len=message.max_model_len,
        total_blocks=message.total_blocks,
        chunk_tokens=message.chunk_tokens,
        max_running=message.max_running,
        vocab_size=message.vocab_size,
    )


def status_to_pb(status: WorkerStatus) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        step=status.step,
        step_age_s=status.step_age_s,
        total_blocks=status.total_blocks,
        free_blocks=status.free_blocks,
        reserved_blocks=status.reserved_blocks,
        num_queued=status.num_queued,
        queued_tokens=status.queued_tokens,
        num_running=status.num_running,
        running_tokens=status.running_tokens,
        num_parked=status.num_parked,
        num_exported=status.num_exported,
        exported_tokens=status.exported_tokens,
        draining=status.draining,
        last_submit_seq=status.last_submit_seq,
        cached_blocks=status.cached_blocks,
        kv_intake_bytes=status.kv_intake_bytes,
        kv_intake_waits=status.kv_intake_waits,
        cost=_cost_to_pb(status.cost),
    )


def status_from_pb(message: pb.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        step=message.step,
        step_age_s=message.step_age_s,
        total_blocks=message.total_blocks,
        free_blocks=message.free_blocks,
        reserved_blocks=message.reserved_blocks,
        num_queued=message.num_queued,
        queued_tokens=message.queued_tokens,
        num_running=message.num_running,
        running_tokens=message.running_tokens,
        num_parked=message.num_parked,
        num_exported=message.num_exported,
        exported_tokens=message.exported_tokens,
        draining=message.draining,
        last_submit_seq=message.last_submit_seq,
        cached_blocks=message.cached_blocks,
        kv_intake_bytes=message.kv_intake_bytes,
        kv_intake_waits=message.kv_intake_waits,
        cost=_cost_from_pb(message.cost),
    )


def _cost_to_pb(cost: StepCost) -> pb.StepCost:
    prefill, decode = cost.prefill, cost.decode
    return pb.StepCost(
        prefill_fixed_s=prefill.fixed_s,
        prefill_per_token_s=prefill.per_token_s,
        prefill_per_squared_token_s=prefill.per_squared_token_s,
        decode_fixed_s=decode.fixed_s,
        decode_per_sequence_s=decode.per_sequence_s,
        decode_per_kv_token_s=decode.per_kv_token_s,
    )


def _cost_from_pb(message: pb.StepCost) -> StepCost:
    return StepCost(
        PrefillCost(
            message.prefill_fixed_s,
            message.prefill_per_token_s,
            message.prefill_per_squared_token_s,
        ),
        DecodeCost(
            message.decode_fixed_s, message.decode_per_sequence_s, message.decode_per_kv_token_s
        ),
    )
