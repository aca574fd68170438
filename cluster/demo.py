"""What ``make demo`` shows: a service of three processes answers four prompts, then stops.

    one prompt by the gRPC client, one streamed by the ``openai`` client, two at once

Under each answer stand its ledger and what KV went from which worker to which. Exit status 0 means
that every answer came. Extra arguments are options of ``pdserve serve``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import openai
from openai.types.chat import ChatCompletionMessageParam

from cluster.commands.serve import make_launcher, prepare_once, say
from cluster.host import inspect_host
from cluster.ledger_text import kv_line, ledger_lines, timing_of
from cluster.plan import read_plan, service_parser
from cluster.service import ServiceAddress
from pdserve.app import stop_signals, unless
from pdserve.errors import PdserveError, ServiceError
from pdserve.log import setup_logging
from pdserve.request_timing import RequestTiming
from router.client import AsyncClient

_DEFAULTS = ("--http-port=0", "--grpc-port=0", "--worker-port=0", "--log-level=warning")
_FIRST = "In one sentence: why is the sky blue?"
_SECOND = "Name three things a lighthouse keeper does."
_TOGETHER = ("Write one line about the sea.", "Count from one to ten.")
_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    timing: RequestTiming


def run_demo(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    started_s = time.monotonic()
    sources = service_parser("make demo ARGS=", "A service and four prompts.").parse(
        [*_DEFAULTS, *argv]
    )
    plan = read_plan(sources)
    setup_logging(plan.log)
    spec = plan.cluster_spec(inspect_host(with_cuda=plan.wants_cuda()))
    say("preparing the model (a few seconds the first time)")
    plan = prepare_once(plan, say)
    say("starting one process for each role")

    async def demonstrate() -> int:
        launcher = make_launcher(plan, spec, say)
        with stop_signals() as signals:
            try:
                if not await unless(signals.drain, launcher.start()):
                    return 130
                say(f"the service is up after {time.monotonic() - started_s:.1f} s")
                if not await unless(signals.drain, _ask_everything(launcher.address)):
                    return 130
                await launcher.stop()
            finally:
                await launcher.kill()
        return 0

    status = asyncio.run(demonstrate())
    if status == 0:
        say(f"everything stopped; the demo took {time.monotonic() - started_s:.1f} s")
    return status


async def _ask_everything(address: ServiceAddress) -> None:
    _heading("1. by gRPC", _FIRST)
    _show(await _by_grpc(address, _FIRST, echo=True))
    _heading("2. streamed by the openai client", _SECOND)
    _show(await _by_openai(address, _SECOND))
    _heading("3. and 4. at once, by gRPC", " | ".join(_TOGETHER))
    answers = await asyncio.gather(*(_by_grpc(address, each, echo=False) for each in _TOGETHER))
    for answer in answers:
        print(answer.text)
        _show(answer)


def _heading(how: str, prompt: str) -> None:
    print(f"\n--- {how}: {prompt}", flush=True)


def _show(answer: Answer) -> None:
    if not answer.text.strip():
        raise ServiceError("an answer is empty")
    for line in (*ledger_lines(answer.timing), kv_line(answer.timing)):
        print(f"    {line}")
    sys.stdout.flush()


async def _by_grpc(address: ServiceAddress, prompt: str, *, echo: bool) -> Answer:
    parts: list[str] = []
    async with AsyncClient(address.grpc_target) as client:
        stream = client.generate(
            messages=[{"role": "user", "content": prompt}], max_tokens=_MAX_TOKENS, temperature=0.0
        )
        async for delta in stream:
            parts.append(delta.text)
            if echo:
                print(delta.text, end="", flush=True)
    if echo:
        print()
    if stream.timing is None:
        raise ServiceError("no ledger came with the answer")
    return Answer("".join(parts), stream.timing)


async def _by_openai(address: ServiceAddress, prompt: str) -> Answer:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": prompt}]
    parts: list[str] = []
    timing: RequestTiming | None = None
    async with openai.AsyncOpenAI(base_url=f"{address.http_url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=address.model_name,
            messages=messages,
            max_tokens=_MAX_TOKENS,
            temperature=0.0,
            stream=True,
            extra_body={"pdserve_timing": True},
        )
        async for chunk in stream:
            for choice in chunk.choices:
                parts.append(choice.delta.content or "")
                print(parts[-1], end="", flush=True)
            if chunk.model_extra and "pdserve" in chunk.model_extra:
                timing = timing_of(chunk.model_extra["pdserve"])
    print()
    if timing is None:
        raise ServiceError("no ledger came with the answer")
    return Answer("".join(parts), timing)


def main() -> int:
    try:
        return run_demo(sys.argv[1:])
    except PdserveError as error:
        say(f"demo failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
