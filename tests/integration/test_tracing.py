"""One trace from the client through router and both workers, as a collector of spans gets it."""

from __future__ import annotations

import asyncio
import urllib.request

from router.client import AsyncClient
from support.local_service import local_service
from support.span_collector import Collected, span_collector

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = b'{"prompt": "hello there", "max_tokens": 5, "ignore_eos": true}'


def ask_by_http(url: str, traceparent: str) -> None:
    request = urllib.request.Request(
        f"{url}/v1/completions", BODY,
        {"content-type": "application/json", "traceparent": traceparent},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


async def test_one_trace_through_three_processes() -> None:
    with span_collector() as collector:
        async with local_service(f"--otlp-endpoint={collector.endpoint}") as (service, _):
            url = service.address.http_url
            await asyncio.to_thread(ask_by_http, url, f"00-{TRACE}-{SPAN}-01")
            await asyncio.to_thread(ask_by_http, url, f"00-{'1' * 32}-{SPAN}-00")  # not sampled
            async with AsyncClient(service.address.grpc_target) as client:
                traceparent = f"00-{'2' * 32}-{SPAN}-01"
                async for _delta in client.generate("hi", max_tokens=3, traceparent=traceparent):
                    pass
            await service.stop()  # everything is sent by then
    by_trace: dict[str, list[Collected]] = {}
    for span in collector.spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    assert set(by_trace) == {TRACE, "2" * 32}
    by_name = {span.name: span for span in by_trace[TRACE]}
    assert len(by_name) == len(by_trace[TRACE])
    root = by_name["request"]
    assert (root.service, root.parent_id) == ("pdserve-router", SPAN)
    assert root.attributes["pdserve.prefill_worker"] == "prefill-0"
    places = {
        "prefill": ("pdserve-prefill", "prefill-0"),
        "kv.transfer": ("pdserve-decode", "decode-0"),
        "decode": ("pdserve-decode", "decode-0"),
    }
    for name, place in places.items():
        span = by_name[name]
        assert (span.service, span.instance, span.parent_id) == (*place, root.span_id)
        assert span.start_ns <= span.end_ns
    assert by_name["router.queue"].parent_id == root.span_id
    assert by_name["prefill.compute"].parent_id == by_name["prefill"].span_id
    assert by_name["decode.first_step"].parent_id == by_name["decode"].span_id
    assert by_name["kv.transfer"].attributes["pdserve.kv_tokens"] == len("hello there")
    assert by_name["decode"].attributes["pdserve.generated_tokens"] == 5
