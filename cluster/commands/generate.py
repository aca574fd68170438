"""``pdserve generate "prompt"``: one answer, as it comes, by gRPC or HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cluster.http_stream import stream_completion
from cluster.ledger_text import kv_line, ledger_lines, timing_of
from pdserve.config import Option, build_config
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser
from pdserve.types import RequestTiming
from router.client import Client, GenerateOptions


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    http: Annotated[bool, Option("ask by HTTP")] = False
    grpc: Annotated[bool, Option("ask by gRPC, which is the default")] = False
    http_url: Annotated[str, Option("address of the HTTP face")] = "http://127.0.0.1:8000"
    grpc_target: Annotated[str, Option("address of the gRPC face, host:port")] = "127.0.0.1:9000"
    timing: Annotated[bool, Option("print the ledger of the request after the answer")] = False
    raw: Annotated[bool, Option("continue the text as it is, without the chat template")] = False
    model: Annotated[str, Option("model to ask; empty: the one that is served")] = ""
    max_tokens: Annotated[
        int, Option("longest answer", unit="tokens", low=1, high=2**31 - 1)
    ] = 128  # fmt: skip
    temperature: Annotated[
        float, Option("randomness; 0: always the likeliest token", low=0, high=100)
    ] = 0.0
    top_p: Annotated[float, Option("share of probability that is kept", low=0, high=1)] = 1.0
    seed: Annotated[int, Option("seed of the randomness; -1: any", low=-1, high=2**63 - 1)] = -1
    stops: Annotated[tuple[str, ...], Option("text that ends the answer")] = ()
    timeout_s: Annotated[float, Option("longest wait for the answer", unit="s", low=0.1)] = 300.0


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
    timing = _print_answer((_by_http if config.http else _by_grpc)(config, prompt))
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


def _by_grpc(config: GenerateConfig, prompt: str) -> Iterator[Part]:
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
    with Client(config.grpc_target) as client:
        stream = client.generate(prompt if config.raw else None, **options)
        for delta in stream:
            yield delta.text
        if stream.timing is not None:
            yield stream.timing


def _by_http(config: GenerateConfig, prompt: str) -> Iterator[Part]:
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
