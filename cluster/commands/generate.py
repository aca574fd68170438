"""``pdserve generate "prompt"``: one answer, as it comes, by gRPC or HTTP."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from cluster.commands.reaching import reaching
from cluster.config import GenerateConfig
from cluster.http_stream import stream_completion
from cluster.ledger_text import kv_line, ledger_lines, timing_of
from pdserve.config import build_config
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser
from pdserve.request_timing import RequestTiming
from router.client import Client, GenerateOptions


def run_generate(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve generate", "Send one prompt to a running service.")
    parser.add_positional("prompt", "text of the prompt; '-' reads it from standard input")
    parser.add_options("options", GenerateConfig)
    sources = parser.parse(argv)
    config = build_config(GenerateConfig, "generate", sources)
    if config.http and config.grpc:
        raise ConfigError("--http and --grpc: give one of them")
    prompt = str(sources.flags["prompt"])
    prompt = sys.stdin.read() if prompt == "-" else prompt
    # Closed here, whatever ends the printing: left to the end of the process, closing the channel
    # would wait for threads that run no more.
    with closing((_by_http if config.http else _by_grpc)(config, prompt)) as parts:
        timing = _print_answer(parts)
    if config.timing and timing is not None:
        print("\n".join([*ledger_lines(timing), kv_line(timing)]), file=sys.stderr)
    return 0


Part = str | RequestTiming


def _print_answer(parts: Iterator[Part]) -> RequestTiming | None:
    timing: RequestTiming | None = None
    for part in parts:
        if isinstance(part, RequestTiming):
            timing = part
        else:
            print(part, end="", flush=True)
    print()
    return timing


def _by_grpc(config: GenerateConfig, prompt: str) -> Generator[Part]:
    options: GenerateOptions = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop": config.stops,
        "timeout_s": config.timeout_s,
        "model": config.model,
    }
    if config.seed >= 0:
        options["seed"] = config.seed
    if not config.raw:
        options["messages"] = [{"role": "user", "content": prompt}]
    with reaching(config.grpc_target), Client(config.grpc_target) as client:
        stream = client.generate(prompt if config.raw else None, **options)
        for delta in stream:
            yield delta.text
        if stream.timing is not None:
            yield stream.timing


def _by_http(config: GenerateConfig, prompt: str) -> Generator[Part]:
    body: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "stop": list(config.stops),
        "pdserve_timing": True,
    }
    if config.model:
        body["model"] = config.model
    if config.seed >= 0:
        body["seed"] = config.seed
    if config.raw:
        path, body["prompt"] = "/v1/completions", prompt
    else:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
    for chunk in stream_completion(config.http_url, path, body, config.timeout_s):
        for choice in chunk["choices"]:
            yield choice["text"] if config.raw else choice["delta"].get("content") or ""
        if "pdserve" in chunk:
            yield timing_of(chunk["pdserve"])
