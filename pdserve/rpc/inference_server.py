"""The public gRPC face: ``pdserve.v1.InferenceService`` in front of an ``InferenceBackend``.

A call that is cancelled or whose deadline passes is cut by gRPC, which cancels the handler; the
handler cancels the generation at once. So does a client that takes nothing for ``stalled_write_s``.
Whatever ends a generation, its ledger goes out in the trailing metadata if a status can be sent at
all. Requests are parsed here and not by gRPC, so that bytes that are no message get
INVALID_ARGUMENT like any other bad input. This module does not know how text comes about.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import DeadlineExceeded, PdserveError, RequestCancelled
from pdserve.log import event_log
from pdserve.public import GenerateJob, GenerationStream, InferenceBackend
from pdserve.request_start import REQUEST_START, Arrival, stated_wait_s
from pdserve.route_hints import read_hints
from pdserve.rpc import codec_public, status
from pdserve.rpc.codec_explained import decode_explain_request, encode_explained
from pdserve.rpc.first_step import FirstStep
from pdserve.tracing import read_context
from pdserve.v1 import inference_service_pb2 as pb

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
REQUEST_ID = "pdserve-request-id"
TRACEPARENT = "traceparent"
STALLED_WRITE_S = 30.0

# A call's deadline further away than this is none; timeout_s, which is asked for, is not touched.
_FAR_DEADLINE_S = 24 * 3600.0
_log = event_log(__name__)


class InferenceServer:
    """Satisfies ``GrpcService`` (pdserve/rpc/server.py)."""

    def __init__(
        self,
        backend: InferenceBackend,
        *,
        stalled_write_s: float = STALLED_WRITE_S,
        clock: Clock | None = None,
    ) -> None:
        self._backend = backend
        self._clock = clock or MonotonicClock()
        self._stalled_write_s = stalled_write_s

    @property
    def name(self) -> str:
        return SERVICE_NAME

    @property
    def is_public(self) -> bool:
        return True

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
            "ListModels": grpc.unary_unary_rpc_method_handler(self._list_models),
            "ClusterStatus": grpc.unary_unary_rpc_method_handler(self._cluster_status),
            "GetTrace": grpc.unary_unary_rpc_method_handler(self._get_trace),
            "Explain": grpc.unary_unary_rpc_method_handler(self._explain),
        }

    async def close(self) -> None:
        """Nothing is held between calls; those that run end with the server's grace."""

    async def _generate(self, data: bytes, context: Any) -> None:
        arrived_s, arrived_unix_s = self._clock.now(), time.time()
        try:
            job = _within_call(codec_public.decode_job(data), context.time_remaining())
            entries = dict(status.plain_metadata(context.invocation_metadata()))
            traceparent = read_context(entries.get(TRACEPARENT, ""))
            job = replace(job, traceparent=traceparent, hints=read_hints(entries.get))
            waited_s = stated_wait_s(entries.get(REQUEST_START), arrived_unix_s)
            arrival = Arrival(self._clock.now() - arrived_s, waited_s)
            stream = await self._backend.generate(job, arrival=arrival)
        except PdserveError as error:
            _end_with(context, error, ())
            return
        try:
            await self._forward(stream, context)
        except PdserveError as error:
            _end_with(context, error, _ledger(stream))
        except BaseException:
            stream.cancel("client left")
            raise
        else:
            context.set_trailing_metadata(_ledger(stream))

    async def _forward(self, stream: GenerationStream, context: Any) -> None:
        begun = False
        async for delta in stream:
            message = codec_public.encode_delta(delta).SerializeToString()
            try:
                async with asyncio.timeout(self._stalled_write_s):
                    writing = context.write(message)
                    await (writing if begun else FirstStep(writing, stream.first_piece_sent))
            except TimeoutError:
                _log.warning("client_stalled", request=stream.request_id)
                stream.cancel("client takes nothing")
                problem = f"client took nothing for {self._stalled_write_s:g} s"
                raise RequestCancelled(problem) from None
            begun = True

    async def _list_models(self, data: bytes, context: Any) -> bytes:
        await _check_empty(pb.ListModelsRequest, data, context)
        return codec_public.encode_models(self._backend.models()).SerializeToString()

    async def _cluster_status(self, data: bytes, context: Any) -> bytes:
        await _check_empty(pb.ClusterStatusRequest, data, context)
        return codec_public.encode_status(self._backend.cluster_status()).SerializeToString()

    async def _get_trace(self, data: bytes, context: Any) -> bytes:
        try:
            wanted = codec_public.decode_trace_request(data)
            record = self._backend.request_record(wanted)
        except PdserveError as error:
            await _abort(error, context)
            raise
        return codec_public.encode_trace(record).SerializeToString()

    async def _explain(self, data: bytes, context: Any) -> bytes:
        try:
            found = self._backend.explain(decode_explain_request(data))
        except PdserveError as error:
            await _abort(error, context)
            raise
        return encode_explained(found).SerializeToString()


async def _check_empty(message_class: Any, data: bytes, context: Any) -> None:
    try:
        codec_public.refuse_nonsense(message_class, data)
    except PdserveError as error:
        await _abort(error, context)


async def _abort(error: PdserveError, context: Any) -> None:
    """Ends the call: unlike a stream, a unary one with a status alone would send a response too."""
    metadata = status.error_metadata(error)
    await context.abort(status.status_code(error), status.details(error), metadata)


def _within_call(job: GenerateJob, time_left_s: float | None) -> GenerateJob:
    """The job, given up when the call's own deadline passes."""
    if time_left_s is None or time_left_s > _FAR_DEADLINE_S:
        return job
    if time_left_s <= 0:
        raise DeadlineExceeded("the deadline of the call has passed")
    if job.timeout_s is not None and job.timeout_s <= time_left_s:
        return job
    return replace(job, timeout_s=time_left_s)


def _ledger(stream: GenerationStream) -> status.Metadata:
    return ((REQUEST_ID, stream.request_id), *status.timing_metadata(stream.timing))


def _end_with(context: Any, error: PdserveError, more: status.Metadata) -> None:
    context.set_code(status.status_code(error))
    context.set_details(status.details(error))
    context.set_trailing_metadata((*status.error_metadata(error), *more))
