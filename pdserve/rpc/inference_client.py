"""Calls of the public gRPC face, sync and async, in terms of pdserve/public.py.

Errors come back as the classes of pdserve/errors.py that the service raised. ``timeout_s`` of a job
is the service's to keep, so that the ledger comes back even then; the call itself is given up
BACKSTOP_S later. This module is what router/client.py is made of. Not covered: retries, several
addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import grpc
import grpc.aio

from pdserve.errors import PdserveError, ProtocolError, RequestCancelled
from pdserve.explained import RequestDecisions
from pdserve.public import ClusterStatusView, GenerateDelta, GenerateJob, RequestRecord
from pdserve.request_start import REQUEST_START, request_start
from pdserve.request_timing import RequestTiming
from pdserve.route_hints import as_metadata
from pdserve.rpc import codec_public, status
from pdserve.rpc.channel import MAX_MESSAGE_BYTES, open_channel, open_sync_channel
from pdserve.rpc.codec_explained import decode_explained
from pdserve.rpc.inference_server import REQUEST_ID, SERVICE_NAME, TRACEPARENT
from pdserve.types import ModelInfo
from pdserve.v1 import inference_service_pb2 as pb

BACKSTOP_S = 5.0
UNARY_TIMEOUT_S = 10.0


class _Ledger:
    """What a stream knows at its end."""

    def __init__(self) -> None:
        self.timing: RequestTiming | None = None
        self.request_id = ""

    def read(self, metadata: Any) -> None:
        entries = status.plain_metadata(metadata)
        self.timing = status.timing_from_metadata(entries)
        self.request_id = dict(entries).get(REQUEST_ID, "")


def _error(rpc_error: Any, metadata: Any) -> PdserveError:
    text = rpc_error.details() or ""
    return status.error_from_status(rpc_error.code(), text, status.plain_metadata(metadata))


def _call_timeout_s(job: GenerateJob) -> float | None:
    return None if job.timeout_s is None else max(job.timeout_s, 0) + BACKSTOP_S


def _call_options(job: GenerateJob) -> dict[str, Any]:
    traceparent = ((TRACEPARENT, job.traceparent),) if job.traceparent else ()
    began = job.began_unix_s
    start = () if began is None else ((REQUEST_START, request_start(began)),)
    metadata = (*traceparent, *start, *as_metadata(job.hints))
    return {"timeout": _call_timeout_s(job), "metadata": metadata}


class AsyncTextStream:
    """One generation: an async iterator of GenerateDelta. Leaving its context cancels the call.

    A failure is raised while iterating, as one PdserveError.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ledger = _Ledger()

    @property
    def timing(self) -> RequestTiming | None:
        """The ledger; None before the end, and where the service did not send it."""
        return self._ledger.timing

    @property
    def request_id(self) -> str:
        """As the service named the request; empty before the end."""
        return self._ledger.request_id

    def cancel(self) -> None:
        """Stop the generation; a reader gets RequestCancelled."""
        self._call.cancel()

    def __aiter__(self) -> AsyncIterator[GenerateDelta]:
        return self

    async def __anext__(self) -> GenerateDelta:
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError as error:
            metadata = error.trailing_metadata()
            self._ledger.read(metadata)
            raise _error(error, metadata) from None
        except asyncio.CancelledError:
            # gRPC says the same when the call is cancelled here as when the reading task is.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            raise RequestCancelled("the call was cancelled at this end") from None
        if data is grpc.aio.EOF:
            self._ledger.read(await self._call.trailing_metadata())
            raise StopAsyncIteration
        return codec_public.decode_delta(codec_public.parse_response(pb.GenerateResponse, data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()


class TextStream:
    """One generation: an iterator of GenerateDelta. Leaving its context cancels the call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ledger = _Ledger()

    @property
    def timing(self) -> RequestTiming | None:
        """The ledger; None before the end, and where the service did not send it."""
        return self._ledger.timing

    @property
    def request_id(self) -> str:
        """As the service named the request; empty before the end."""
        return self._ledger.request_id

    def cancel(self) -> None:
        """Stop the generation, from any thread; a reader gets RequestCancelled."""
        self._call.cancel()

    def __iter__(self) -> Iterator[GenerateDelta]:
        return self

    def __next__(self) -> GenerateDelta:
        try:
            data = next(self._call)
        except StopIteration:
            self._ledger.read(self._call.trailing_metadata())
            raise
        except grpc.RpcError as error:
            metadata = self._call.trailing_metadata()
            self._ledger.read(metadata)
            raise _error(error, metadata) from None
        return codec_public.decode_delta(codec_public.parse_response(pb.GenerateResponse, data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()


class AsyncInferenceStub:
    """One connection, on the loop it is made on. Methods may run at the same time."""

    def __init__(self, address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._channel = open_channel(address, max_message_bytes)
        self._generate: Any = self._channel.unary_stream(_path("Generate"))
        self._list_models: Any = self._channel.unary_unary(_path("ListModels"))
        self._cluster_status: Any = self._channel.unary_unary(_path("ClusterStatus"))
        self._get_trace: Any = self._channel.unary_unary(_path("GetTrace"))
        self._explain: Any = self._channel.unary_unary(_path("Explain"))

    def generate(self, job: GenerateJob) -> AsyncTextStream:
        """Raises InvalidRequest for values that cannot be sent; all else comes while iterating."""
        data = codec_public.encode_job(job).SerializeToString()
        return AsyncTextStream(self._generate(data, **_call_options(job)))

    async def list_models(self) -> tuple[ModelInfo, ...]:
        data = await self._ask(self._list_models, pb.ListModelsRequest())
        return codec_public.decode_models(codec_public.parse_response(pb.ListModelsResponse, data))

    async def cluster_status(self) -> ClusterStatusView:
        data = await self._ask(self._cluster_status, pb.ClusterStatusRequest())
        message = codec_public.parse_response(pb.ClusterStatusResponse, data)
        return codec_public.decode_status(message)

    async def request_record(self, request_id: str) -> RequestRecord:
        data = await self._ask(self._get_trace, pb.GetTraceRequest(request_id=request_id))
        return codec_public.decode_trace(codec_public.parse_response(pb.GetTraceResponse, data))

    async def explain(self, request_id: str) -> RequestDecisions:
        data = await self._ask(self._explain, pb.ExplainRequest(request_id=request_id))
        return decode_explained(codec_public.parse_response(pb.ExplainResponse, data))

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, method: Any, request: Any) -> bytes:
        try:
            return bytes(await method(request.SerializeToString(), timeout=UNARY_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            raise _error(error, error.trailing_metadata()) from None


class InferenceStub:
    """One connection for a program without an event loop. Safe to use from several threads."""

    def __init__(self, address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._channel = open_sync_channel(address, max_message_bytes)
        self._generate: Any = self._channel.unary_stream(_path("Generate"))
        self._list_models: Any = self._channel.unary_unary(_path("ListModels"))
        self._cluster_status: Any = self._channel.unary_unary(_path("ClusterStatus"))
        self._get_trace: Any = self._channel.unary_unary(_path("GetTrace"))
        self._explain: Any = self._channel.unary_unary(_path("Explain"))

    def generate(self, job: GenerateJob) -> TextStream:
        """Raises InvalidRequest for values that cannot be sent; all else comes while iterating."""
        data = codec_public.encode_job(job).SerializeToString()
        return TextStream(self._generate(data, **_call_options(job)))

    def list_models(self) -> tuple[ModelInfo, ...]:
        data = self._ask(self._list_models, pb.ListModelsRequest())
        return codec_public.decode_models(codec_public.parse_response(pb.ListModelsResponse, data))

    def cluster_status(self) -> ClusterStatusView:
        data = self._ask(self._cluster_status, pb.ClusterStatusRequest())
        message = codec_public.parse_response(pb.ClusterStatusResponse, data)
        return codec_public.decode_status(message)

    def request_record(self, request_id: str) -> RequestRecord:
        data = self._ask(self._get_trace, pb.GetTraceRequest(request_id=request_id))
        return codec_public.decode_trace(codec_public.parse_response(pb.GetTraceResponse, data))

    def explain(self, request_id: str) -> RequestDecisions:
        data = self._ask(self._explain, pb.ExplainRequest(request_id=request_id))
        return decode_explained(codec_public.parse_response(pb.ExplainResponse, data))

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: Any, request: Any) -> bytes:
        try:
            return bytes(method(request.SerializeToString(), timeout=UNARY_TIMEOUT_S))
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call):
                raise ProtocolError(f"no status with {error!r}") from error
            raise _error(error, error.trailing_metadata()) from None


def _path(method: str) -> str:
    return f"/{SERVICE_NAME}/{method}"
