"""Spans of a request across processes: W3C trace contexts, and where finished spans go.

A trace context travels as the text of a ``traceparent`` header (W3C Trace Context, level 1):
``00-<trace id, 32 hex>-<span id, 16 hex>-<flags, 2 hex>``. Each process makes spans of what it did
itself, on its own clock, when it is done; a ``SpanSink`` takes them (pdserve/otel.py sends them).
This module knows no OpenTelemetry. Not covered: tracestate, baggage.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

from pdserve.config import Option

AttributeValue = str | int | float | bool

_CONTEXT = re.compile(r"(?P<version>[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TracingConfig:
    TABLE: ClassVar = "tracing"

    otlp_endpoint: Annotated[
        str,
        Option(
            "address of an OpenTelemetry collector for spans (OTLP over HTTP), as"
            " http://host:4318/v1/traces; empty: no spans. Needs the extra 'otel'"
        ),
    ] = ""
    trace_share: Annotated[
        float,
        Option(
            "share of the requests without a traceparent of their own that are traced",
            unit="share", low=0, high=1,
        ),
    ] = 1.0  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """Something that was done. Times on the clock of the process that did it.

    ``context`` names the span itself, ``parent`` the one it belongs to ("": none).
    """

    name: str
    context: str
    parent: str
    start_s: float
    end_s: float
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    error: str = ""
    serves: bool = False  # the span of the service's own client


class SpanSink(Protocol):
    def take(self, span: Span) -> None:
        """Never blocks, never raises."""

    async def close(self) -> None:
        """Send what is left, for a bounded time."""


class Tracer:
    """What a role makes spans with. ``sink`` None: contexts are passed on, no spans are made."""

    def __init__(self, sink: SpanSink | None = None, *, share: float = 1.0) -> None:
        self._sink = sink
        self._share = share

    def begin(self, parent: str) -> str:
        """The context of a new request, in the trace of ``parent`` or one of its own."""
        if self._sink is None:
            return parent
        if parent:
            return child_of(parent)
        sampled = random.random() < self._share
        return f"00-{_random_hex(128)}-{_random_hex(64)}-{int(sampled):02x}"

    def traces(self, context: str) -> bool:
        """Whether spans in this context go anywhere: asked before they are made."""
        return self._sink is not None and is_sampled(context)

    def record(self, span: Span) -> None:
        if self._sink is not None and is_sampled(span.context):
            self._sink.take(span)

    def part(
        self,
        parent: str,
        name: str,
        start_s: float,
        end_s: float,
        error: str = "",
        *,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> str:
        """Record a span under ``parent``; its own context, for parts of it ("": not traced)."""
        if not self.traces(parent):
            return ""
        context = child_of(parent)
        self.record(Span(name, context, parent, start_s, end_s, attributes or {}, error))
        return context

    async def close(self) -> None:
        if self._sink is not None:
            await self._sink.close()


def read_context(header: str) -> str:
    """A ``traceparent`` as a client sent it, as version 00; "" if it is none and to be ignored."""
    match = _CONTEXT.fullmatch(header.strip())
    if match is None:
        return ""
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return ""
    if not int(trace_id, 16) or not int(span_id, 16):
        return ""
    return f"00-{trace_id}-{span_id}-{int(flags, 16) & _SAMPLED:02x}"


def child_of(context: str) -> str:
    """Another span of the same trace."""
    trace_id, _, flags = ids_of(context)
    return f"00-{trace_id:032x}-{_random_hex(64)}-{flags:02x}"


def ids_of(context: str) -> tuple[int, int, int]:
    """(trace id, span id, flags)."""
    _, trace_id, span_id, flags = context.split("-")
    return int(trace_id, 16), int(span_id, 16), int(flags, 16)


def is_sampled(context: str) -> bool:
    return bool(context) and bool(ids_of(context)[2] & _SAMPLED)


def _random_hex(bits: int) -> str:
    """Never all zeros, which names nothing."""
    return f"{random.getrandbits(bits - 1) + 1:0{bits // 4}x}"
