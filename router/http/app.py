"""The HTTP face: OpenAI's endpoints, health, readiness, metrics, as one Starlette application.

It is handed everything it needs and owns nothing: no task, no state beyond its parts. Around the
application: request ids for every response, and CORS where origins are allowed. Not covered:
authentication, TLS (a proxy's work).
"""

from __future__ import annotations

import time

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pdserve.clock import Clock, MonotonicClock
from pdserve.errors import UnknownModel
from pdserve.metrics import METRICS_CONTENT_TYPE, ServiceMetrics
from router.http.config import HttpConfig
from router.http.endpoints import CHAT_COMPLETIONS, COMPLETIONS, GenerationEndpoint
from router.http.errors import error_body, plain_error_body
from router.http.reading import BodyReader
from router.http.request_ids import RequestIds
from router.http.schemas import DetokenizeRequest, TokenizeRequest
from router.http.status import StatusSource
from router.http.tokenizing import TextEndpoint, Tokenizing
from router.text_generation import TextService

_JSON = "application/json"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "pdserve"
    max_model_len: int


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    problem: str


def build_http_app(
    service: TextService,
    status: StatusSource,
    metrics: ServiceMetrics,
    config: HttpConfig | None = None,
    *,
    clock: Clock | None = None,
) -> ASGIApp:
    """``metrics`` must be the one ``service`` counts in, ``clock`` its clock; ``status`` is called
    for each /ready and /metrics."""
    config = config or HttpConfig()
    clock = clock or MonotonicClock()
    pages = _Pages(service, status, metrics)
    completions = GenerationEndpoint(COMPLETIONS, service, metrics, config, clock)
    chat = GenerationEndpoint(CHAT_COMPLETIONS, service, metrics, config, clock)
    tokenizing, reader = Tokenizing(service), BodyReader(metrics, config)
    tokenize = TextEndpoint(TokenizeRequest, tokenizing.tokenize, reader, metrics)
    detokenize = TextEndpoint(DetokenizeRequest, tokenizing.detokenize, reader, metrics)
    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/v1/models", pages.models),
            Route("/v1/models/{model:path}", pages.model),
            Route("/health", pages.health),
            Route("/ready", pages.ready),
            Route("/metrics", pages.metrics),
        ],
        exception_handlers={HTTPException: _http_exception, Exception: _bug},
    )
    # Outside of Starlette's own handling of errors, so that those answers have the headers too.
    return _with_cors(RequestIds(app), config.cors_origins)


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
    )


class _Pages:
    """What is answered at once."""

    def __init__(self, service: TextService, status: StatusSource, metrics: ServiceMetrics) -> None:
        self._service = service
        self._status = status
        self._metrics = metrics
        self._created = int(time.time())

    async def models(self, request: Request) -> Response:
        return _json(ModelList([self._card()]))

    async def model(self, request: Request) -> Response:
        card, wanted = self._card(), request.path_params["model"]
        if wanted != card.id:
            error = UnknownModel(f"model: {wanted!r} is not served here, only {card.id!r}")
            return Response(error_body(error), error.http_status, media_type=_JSON)
        return _json(card)

    async def health(self, request: Request) -> Response:
        """The process lives and its event loop turns."""
        return Response(b'{"status":"ok"}', media_type=_JSON)

    async def ready(self, request: Request) -> Response:
        status = self._status()
        body = Readiness(status.ready, status.problem)
        return _json(body, 200 if status.ready else 503)

    async def metrics(self, request: Request) -> Response:
        status = self._status()
        self._metrics.set_workers(status.workers)
        self._metrics.set_kv_pairs(status.kv_pairs)
        self._metrics.set_queue_len(status.num_queued)
        return Response(self._metrics.render(), headers={"content-type": METRICS_CONTENT_TYPE})

    def _card(self) -> ModelCard:
        model = self._service.model
        return ModelCard(id=model.name, created=self._created, max_model_len=model.max_model_len)


def _json(value: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=_JSON)


async def _http_exception(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it."""
    assert isinstance(error, HTTPException)
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    told = f"{error.detail}: {request.method} {request.url.path}"
    body = plain_error_body(told, "invalid_request_error", code)
    return Response(body, error.status_code, headers=dict(error.headers or {}), media_type=_JSON)


async def _bug(request: Request, error: Exception) -> Response:
    """Starlette raises the error on, so that the server logs it."""
    body = plain_error_body("internal error", "server_error", "internal_error")
    return Response(body, 500, media_type=_JSON)
