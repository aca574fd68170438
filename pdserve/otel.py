"""Spans to an OpenTelemetry collector, by OTLP over HTTP. The home of ``opentelemetry``.

Spans are queued and sent by the library's own thread; when the collector is slow or away they are
dropped, and the library says so. The extra ``otel`` brings the packages. Not covered: OTLP over
gRPC, metrics and logs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from pdserve.clock import Clock
from pdserve.errors import ConfigError
from pdserve.tracing import Span, Tracer, TracingConfig, ids_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_SEND_TIMEOUT_S = 2.0  # at the end, and for each request to the collector


def open_tracer(config: TracingConfig, clock: Clock, service: str, instance: str = "") -> Tracer:
    """``service``: "pdserve-router" or the like; ``instance``: the worker's id.

    Raises:
        ConfigError: an endpoint is given and the packages are missing.
    """
    if not config.otlp_endpoint:
        return Tracer()
    if not config.otlp_endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_endpoint must be like http://host:4318/v1/traces, not {config.otlp_endpoint!r}"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"otlp_endpoint needs the extra 'otel' of pdserve: {error}").advise(
            "pip install 'pdserve[otel]', or leave --otlp-endpoint out"
        ) from error
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, timeout=_SEND_TIMEOUT_S)
    processor = BatchSpanProcessor(exporter)
    return Tracer(OtelSpans(processor, clock, service, instance), share=config.trace_share)


class OtelSpans:
    """A ``SpanSink``. ``processor`` is the library's, and is shut down with it."""

    def __init__(self, processor: SpanProcessor, clock: Clock, service: str, instance: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor = processor
        # Collectors want the time of day; ours only measures spans of time.
        self._epoch_s = time.time() - clock.now()
        about = {"service.name": service, "service.namespace": "pdserve"}
        self._resource = Resource.create(
            about | ({"service.instance.id": instance} if instance else {})
        )
        self._scope = InstrumentationScope("pdserve")

    def take(self, span: Span) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        def context(text: str, *, is_remote: bool) -> SpanContext:
            trace_id, span_id, flags = ids_of(text)
            return SpanContext(trace_id, span_id, is_remote, TraceFlags(flags))

        self._processor.on_end(
            ReadableSpan(
                span.name,
                context(span.context, is_remote=False),
                context(span.parent, is_remote=True) if span.parent else None,
                self._resource,
                dict(span.attributes),
                kind=SpanKind.SERVER if span.serves else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                start_time=self._nanoseconds(span.start_s),
                end_time=self._nanoseconds(span.end_s),
                instrumentation_scope=self._scope,
            )
        )

    async def close(self) -> None:
        await asyncio.to_thread(self._processor.shutdown)

    def _nanoseconds(self, time_s: float) -> int:
        return int((self._epoch_s + time_s) * 1e9)
