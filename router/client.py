"""A small typed client of the service, sync and async.

    with Client("127.0.0.1:9000") as client:
        for chunk in client.generate("Once upon a time", max_tokens=20):
            print(chunk.text, end="")

    async with AsyncClient("127.0.0.1:9000") as client:
        stream = client.generate(messages=[{"role": "user", "content": "Hello"}])
        async for chunk in stream:
            print(chunk.text, end="")
        print(stream.timing)

Errors are those of pdserve/errors.py. A stream that is not read to its end is cancelled by
``stream.cancel()`` or by leaving ``with stream:``. Not covered: retries, several addresses, TLS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self, TypedDict, Unpack

from pdserve.errors import InvalidRequest
from pdserve.explained import RequestDecisions
from pdserve.public import (
    ChatMessage,
    ClusterStatusView,
    GenerateDelta,
    GenerateJob,
    RequestRecord,
    SamplingOptions,
    ToolCall,
)
from pdserve.route_hints import RouteHints
from pdserve.rpc.inference_client import (
    AsyncInferenceStub,
    AsyncTextStream,
    InferenceStub,
    TextStream,
)
from pdserve.types import ModelInfo

__all__ = [
    "AsyncClient",
    "AsyncTextStream",
    "ChatMessage",
    "Client",
    "ClusterStatusView",
    "GenerateDelta",
    "GenerateOptions",
    "ModelInfo",
    "RequestDecisions",
    "RequestRecord",
    "TextStream",
    "ToolCall",
]


_MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_call_id"})


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``generate``; what is left out is left to the service.

    ``timeout_s`` in seconds; ``cache_salt``: prefixes are shared with the same salt only;
    ``num_answers``: chunks tell by ``answer_index`` whose they are; ``best_of``: so many are
    generated, and the likeliest told, best first, when all have ended;
    ``traceparent``: W3C context of the caller's span; ``hints``: tenant, session, explain;
    ``began_unix_s``: the time of day the request began, for the ledger's ``before_face_s``;
    ``messages`` are ChatMessage or mappings with "role" and "content", and "name" or
    "tool_call_id" if wanted; the rest as in SamplingOptions.
    """

    prompt_ids: Sequence[int]
    messages: Sequence[ChatMessage | Mapping[str, str]]
    model: str
    request_id: str
    stop: str | Sequence[str]
    priority: int
    timeout_s: float
    cache_salt: str
    num_answers: int
    best_of: int
    traceparent: str
    began_unix_s: float
    hints: RouteHints
    max_tokens: int
    min_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    num_logprobs: int


class Client:
    """One connection to one service. Safe to use from several threads."""

    def __init__(self, address: str) -> None:
        """``address`` is host:port of the router's gRPC face; connects on first use."""
        self._stub = InferenceStub(address)

    def generate(self, prompt: str | None = None, **options: Unpack[GenerateOptions]) -> TextStream:
        """Start a generation from ``prompt``, ``prompt_ids`` or ``messages``.

        Raises:
            InvalidRequest: not exactly one prompt, or a value that cannot be sent. Everything that
                the service raises comes while iterating.
        """
        return self._stub.generate(_job(prompt, options))

    def list_models(self) -> tuple[ModelInfo, ...]:
        return self._stub.list_models()

    def cluster_status(self) -> ClusterStatusView:
        return self._stub.cluster_status()

    def request_record(self, request_id: str) -> RequestRecord:
        """What is kept of a request that has ended; "last": the newest. Raises UnknownRequest."""
        return self._stub.request_record(request_id)

    def explain(self, request_id: str) -> RequestDecisions:
        """Why it went where it went, or waits; "last": the newest. Raises UnknownDecision."""
        return self._stub.explain(request_id)

    def close(self) -> None:
        """Ends what still runs."""
        self._stub.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """The same on a running event loop; made and used on one loop."""

    def __init__(self, address: str) -> None:
        """``address`` is host:port of the router's gRPC face; connects on first use."""
        self._stub = AsyncInferenceStub(address)

    def generate(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream:
        """As ``Client.generate``; the result is iterated with ``async for``."""
        return self._stub.generate(_job(prompt, options))

    async def list_models(self) -> tuple[ModelInfo, ...]:
        return await self._stub.list_models()

    async def cluster_status(self) -> ClusterStatusView:
        return await self._stub.cluster_status()

    async def request_record(self, request_id: str) -> RequestRecord:
        return await self._stub.request_record(request_id)

    async def explain(self, request_id: str) -> RequestDecisions:
        return await self._stub.explain(request_id)

    async def close(self) -> None:
        """Ends what still runs."""
        await self._stub.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _job(prompt: str | None, options: GenerateOptions) -> GenerateJob:
    prompt_ids, messages = options.get("prompt_ids"), options.get("messages")
    stop = options.get("stop", ())
    return GenerateJob(
        prompt=prompt,
        prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
        messages=None if messages is None else _messages(messages),
        sampling=_sampling(options),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        model=options.get("model", ""),
        request_id=options.get("request_id", ""),
        priority=options.get("priority", 0),
        timeout_s=options.get("timeout_s"),
        cache_salt=options.get("cache_salt", ""),
        num_answers=options.get("num_answers", 1),
        best_of=options.get("best_of"),
        traceparent=options.get("traceparent", ""),
        began_unix_s=options.get("began_unix_s"),
        hints=options.get("hints", RouteHints()),
    )


def _sampling(options: GenerateOptions) -> SamplingOptions:
    return SamplingOptions(
        max_tokens=options.get("max_tokens"),
        min_tokens=options.get("min_tokens"),
        temperature=options.get("temperature"),
        top_k=options.get("top_k"),
        top_p=options.get("top_p"),
        min_p=options.get("min_p"),
        repetition_penalty=options.get("repetition_penalty"),
        presence_penalty=options.get("presence_penalty"),
        frequency_penalty=options.get("frequency_penalty"),
        logit_bias=tuple(options.get("logit_bias", {}).items()),
        seed=options.get("seed"),
        stop_token_ids=tuple(options.get("stop_token_ids", ())),
        ignore_eos=options.get("ignore_eos"),
        num_logprobs=options.get("num_logprobs"),
    )


def _messages(messages: Iterable[ChatMessage | Mapping[str, str]]) -> tuple[ChatMessage, ...]:
    turns = []
    for index, message in enumerate(messages):
        if isinstance(message, ChatMessage):
            turns.append(message)
        elif {"role", "content"} <= message.keys() <= _MESSAGE_KEYS:
            turns.append(
                ChatMessage(
                    message["role"],
                    message["content"],
                    message.get("name"),
                    tool_call_id=message.get("tool_call_id"),
                )
            )
        else:
            raise InvalidRequest(
                f"messages[{index}]", f"needs role and content, not {', '.join(sorted(message))}"
            )
    return tuple(turns)
