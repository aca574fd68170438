"""The values of the public face (pdserve/public.py) as protobuf messages and back.

Used by both ends. What a client sends is read here without judging ranges, those are the service's;
a fault of form is an InvalidRequest naming the field. What a server sends is read with the same
checks as a session's messages; a fault is a ProtocolError.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from google.protobuf.message import DecodeError

from pdserve.errors import InvalidRequest, ProtocolError
from pdserve.public import (
    ChatMessage,
    ClusterStatusView,
    GenerateDelta,
    GenerateJob,
    KvPairView,
    RefusedWorkerView,
    RequestRecord,
    SampledToken,
    SamplingOptions,
    TokenText,
    ToolCall,
    Usage,
    WorkerView,
)
from pdserve.request_timing import RequestTiming
from pdserve.rpc import codec_values as values
from pdserve.types import ModelInfo, WorkerId
from pdserve.v1 import inference_service_pb2 as pb

_OPTIONAL_SAMPLING = (
    "max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "ignore_eos", "num_logprobs",
)  # fmt: skip


# --- the request ------------------------------------------------------------------------------


def encode_job(job: GenerateJob) -> pb.GenerateRequest:
    """Raises InvalidRequest for a value that does not fit its field."""
    try:
        return pb.GenerateRequest(
            request_id=job.request_id,
            model=job.model,
            **_prompt_to_pb(job),
            sampling=_sampling_to_pb(job.sampling),
            stop=job.stop,
            priority=job.priority,
            timeout_s=job.timeout_s,
            cache_salt=job.cache_salt,
            num_answers=None if job.num_answers == 1 else job.num_answers,
            best_of=job.best_of,
        )
    except (ValueError, TypeError) as error:
        raise InvalidRequest("request", str(error)) from error


def decode_job(data: bytes) -> GenerateJob:
    """Raises InvalidRequest."""
    try:
        message = pb.GenerateRequest.FromString(data)
    except DecodeError as error:
        raise InvalidRequest("request", f"not a GenerateRequest: {error}") from error
    timeout_s = message.timeout_s if message.HasField("timeout_s") else None
    if timeout_s is not None and not math.isfinite(timeout_s):
        raise InvalidRequest("timeout_s", f"must be a number of seconds, not {timeout_s}")
    request_id = message.request_id
    if len(request_id) > 128 or not (request_id.isascii() and request_id.isprintable()):
        raise InvalidRequest("request_id", "must be at most 128 printable ASCII characters")
    return GenerateJob(
        **_prompt_from_pb(message),
        sampling=_sampling_from_pb(message.sampling),
        stop=tuple(message.stop),
        model=message.model,
        request_id=request_id,
        priority=message.priority,
        timeout_s=timeout_s,
        cache_salt=message.cache_salt,
        num_answers=message.num_answers if message.HasField("num_answers") else 1,
        best_of=message.best_of if message.HasField("best_of") else None,
    )


def _prompt_to_pb(job: GenerateJob) -> dict[str, Any]:
    if job.prompt is not None:
        return {"text": job.prompt}
    if job.prompt_ids is not None:
        return {"token_ids": pb.TokenIds(ids=job.prompt_ids)}
    return {"messages": pb.ChatMessages(messages=map(_turn_to_pb, job.messages or ()))}


def _prompt_from_pb(message: pb.GenerateRequest) -> dict[str, Any]:
    match message.WhichOneof("prompt"):
        case "text":
            return {"prompt": message.text}
        case "token_ids":
            return {"prompt_ids": tuple(message.token_ids.ids)}
        case "messages":
            turns = message.messages.messages
            return {"messages": tuple(map(_turn_from_pb, turns))}
    raise InvalidRequest("prompt", "one of text, token_ids and messages is needed")


def _turn_to_pb(turn: ChatMessage) -> pb.ChatMessage:
    return pb.ChatMessage(
        role=turn.role,
        content=turn.content,
        name=turn.name,
        tool_calls=[
            pb.ToolCall(id=call.call_id, function=call.function, arguments_json=call.arguments_json)
            for call in turn.tool_calls
        ],
        tool_call_id=turn.tool_call_id,
    )


def _turn_from_pb(turn: pb.ChatMessage) -> ChatMessage:
    return ChatMessage(
        turn.role,
        turn.content,
        turn.name if turn.HasField("name") else None,
        tuple(ToolCall(each.id, each.function, each.arguments_json) for each in turn.tool_calls),
        turn.tool_call_id if turn.HasField("tool_call_id") else None,
    )


def _sampling_to_pb(sampling: SamplingOptions) -> pb.SamplingOptions:
    return pb.SamplingOptions(
        logit_bias=[
            pb.TokenBias(token_id=token_id, bias=bias) for token_id, bias in sampling.logit_bias
        ],
        stop_token_ids=sampling.stop_token_ids,
        **{name: getattr(sampling, name) for name in _OPTIONAL_SAMPLING},
    )


def _sampling_from_pb(message: pb.SamplingOptions) -> SamplingOptions:
    return SamplingOptions(
        logit_bias=tuple((entry.token_id, entry.bias) for entry in message.logit_bias),
        stop_token_ids=tuple(message.stop_token_ids),
        **{
            name: getattr(message, name) if message.HasField(name) else None
            for name in _OPTIONAL_SAMPLING
        },
    )


# --- the answer -------------------------------------------------------------------------------


def encode_delta(delta: GenerateDelta) -> pb.GenerateResponse:
    usage = delta.usage
    return pb.GenerateResponse(
        text_delta=delta.text,
        token_ids=delta.token_ids,
        logprobs=[
            pb.SampledToken(
                chosen=_token_to_pb(each.chosen), top=[_token_to_pb(top) for top in each.top]
            )
            for each in delta.logprobs
        ],
        finish_reason=values.FINISH_TO_PB[delta.finish_reason],
        answer_index=delta.answer_index,
        usage=None
        if usage is None
        else pb.Usage(
            num_prompt_tokens=usage.num_prompt_tokens,
            num_completion_tokens=usage.num_completion_tokens,
            num_cached_tokens=usage.num_cached_tokens,
        ),
    )


def decode_delta(message: pb.GenerateResponse) -> GenerateDelta:
    usage = message.usage
    return GenerateDelta(
        text=message.text_delta,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(
            SampledToken(
                _token_from_pb(each.chosen), tuple(_token_from_pb(top) for top in each.top)
            )
            for each in message.logprobs
        ),
        finish_reason=values.known(
            values.FINISH_FROM_PB, message.finish_reason, "GenerateResponse.finish_reason"
        ),
        usage=Usage(usage.num_prompt_tokens, usage.num_completion_tokens, usage.num_cached_tokens)
        if message.HasField("usage")
        else None,
        answer_index=message.answer_index,
    )


def _token_to_pb(token: TokenText) -> pb.TokenText:
    return pb.TokenText(
        token_id=token.token_id, text=token.text, utf8=token.utf8, logprob=token.logprob
    )


def _token_from_pb(message: pb.TokenText) -> TokenText:
    return TokenText(message.token_id, message.text, message.utf8, message.logprob)


# --- models and status ------------------------------------------------------------------------


def encode_models(models: tuple[ModelInfo, ...]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=[_model_to_pb(model) for model in models])


def decode_models(message: pb.ListModelsResponse) -> tuple[ModelInfo, ...]:
    return tuple(_model_from_pb(model) for model in message.models)


def encode_status(view: ClusterStatusView) -> pb.ClusterStatusResponse:
    return pb.ClusterStatusResponse(
        can_serve=view.can_serve,
        mode=view.mode,
        model=_model_to_pb(view.model),
        workers=[_worker_to_pb(worker) for worker in view.workers],
        num_queued=view.num_queued,
        num_in_flight=view.num_in_flight,
        num_tickets=view.num_tickets,
        draining=view.draining,
        kv_pairs=[_pair_to_pb(pair) for pair in view.kv_pairs],
        problem=view.problem,
        refused=[
            pb.RefusedWorker(worker_id=each.worker_id, peer=each.peer, problem=each.problem)
            for each in view.refused
        ],
    )


def decode_status(message: pb.ClusterStatusResponse) -> ClusterStatusView:
    """Raises ProtocolError."""
    values.require(message, "model")
    return ClusterStatusView(
        can_serve=message.can_serve,
        mode=message.mode,
        model=_model_from_pb(message.model),
        workers=tuple(_worker_from_pb(worker) for worker in message.workers),
        num_queued=message.num_queued,
        num_in_flight=message.num_in_flight,
        num_tickets=message.num_tickets,
        draining=message.draining,
        kv_pairs=tuple(_pair_from_pb(pair) for pair in message.kv_pairs),
        problem=message.problem,
        refused=tuple(
            RefusedWorkerView(WorkerId(each.worker_id), each.peer, each.problem)
            for each in message.refused
        ),
    )


def _pair_to_pb(pair: KvPairView) -> pb.KvPair:
    return pb.KvPair(
        prefill_worker=pair.prefill_worker,
        decode_worker=pair.decode_worker,
        transport=pair.transport,
        num_reads=pair.num_reads,
        num_bytes=pair.num_bytes,
        read_bytes_per_s=pair.read_bytes_per_s,
        probe_bytes_per_s=pair.probe_bytes_per_s,
        probe_bytes=pair.probe_bytes,
        num_fallbacks=pair.num_fallbacks,
    )


def _pair_from_pb(message: pb.KvPair) -> KvPairView:
    return KvPairView(
        prefill_worker=WorkerId(message.prefill_worker),
        decode_worker=WorkerId(message.decode_worker),
        transport=message.transport,
        num_reads=message.num_reads,
        num_bytes=message.num_bytes,
        read_bytes_per_s=message.read_bytes_per_s,
        probe_bytes_per_s=message.probe_bytes_per_s,
        probe_bytes=message.probe_bytes,
        num_fallbacks=message.num_fallbacks,
    )


def _model_to_pb(model: ModelInfo) -> pb.Model:
    return pb.Model(
        name=model.name,
        fingerprint=model.fingerprint,
        vocab_size=model.vocab_size,
        max_model_len=model.max_model_len,
        eos_token_ids=model.eos_token_ids,
    )


def _model_from_pb(message: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=message.name,
        fingerprint=message.fingerprint,
        vocab_size=message.vocab_size,
        max_model_len=message.max_model_len,
        eos_token_ids=tuple(message.eos_token_ids),
    )


def _worker_to_pb(worker: WorkerView) -> pb.WorkerState:
    return pb.WorkerState(
        worker_id=worker.worker_id,
        incarnation=worker.incarnation,
        role=values.ROLE_TO_PB[worker.role],
        device=worker.device,
        limits=values.limits_to_pb(worker.limits),
        status=values.status_to_pb(worker.status),
        endpoints=values.endpoints_to_pb(worker.endpoints),
        num_legs=worker.num_legs,
        draining=worker.draining,
        silent=worker.silent,
        peer=worker.peer,
    )


def _worker_from_pb(message: pb.WorkerState) -> WorkerView:
    values.require(message, "limits", "status")
    return WorkerView(
        worker_id=WorkerId(message.worker_id),
        incarnation=message.incarnation,
        role=values.known(values.ROLE_FROM_PB, message.role, "WorkerState.role"),
        device=message.device,
        limits=values.limits_from_pb(message.limits),
        status=values.status_from_pb(message.status),
        endpoints=values.endpoints_from_pb(message.endpoints),
        num_legs=message.num_legs,
        draining=message.draining,
        silent=message.silent,
        peer=message.peer,
    )


# --- what is kept of a request ----------------------------------------------------------------


def decode_trace_request(data: bytes) -> str:
    """The request that is asked for. Raises InvalidRequest."""
    refuse_nonsense(pb.GetTraceRequest, data)
    request_id = pb.GetTraceRequest.FromString(data).request_id
    if not request_id:
        raise InvalidRequest("request_id", "must not be empty")
    return str(request_id)


def encode_trace(record: RequestRecord) -> pb.GetTraceResponse:
    return pb.GetTraceResponse(
        request_id=record.request_id,
        outcome=record.outcome,
        timing=pb.RequestTiming(**dataclasses.asdict(record.timing)),
    )


def decode_trace(message: pb.GetTraceResponse) -> RequestRecord:
    """Raises ProtocolError."""
    values.require(message, "timing")
    names = [field.name for field in dataclasses.fields(RequestTiming)]
    timing = RequestTiming(**{name: getattr(message.timing, name) for name in names})
    return RequestRecord(message.request_id, message.outcome, timing)


def refuse_nonsense(message_class: Any, data: bytes) -> None:
    """For requests without fields: raises InvalidRequest if the bytes are not protobuf."""
    try:
        message_class.FromString(data)
    except DecodeError as error:
        raise InvalidRequest("request", f"not a {message_class.__name__}: {error}") from error


def parse_response(message_class: Any, data: bytes) -> Any:
    """A response as a protobuf message; raises ProtocolError if it is none."""
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"{message_class.__name__}: {error}") from error
