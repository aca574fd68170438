"""Other people's clients, unchanged, against a whole service: do they work, and what do they see.

    --environments DIR    where benchmarks/clients/make_environments put them
    --tool NAME           one of them (default: all that are installed there)
    --record DIR          keep one request of each kind a tool sends (tests/data/clients)

Starts one service for all with the flags after ``--``. The figures are the tools' own, each with
its own clock and definitions; they share the machine with the service. Not covered: comparing
servers (scenario service, or the tools by hand on both).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import uvloop

from benchmarks.clients.aiperf import Aiperf
from benchmarks.clients.guidellm import Guidellm
from benchmarks.clients.recording import recording
from benchmarks.clients.sessions import Grpcurl, OpenaiClient
from benchmarks.clients.tokenizer_folder import write_tokenizer_folder
from benchmarks.clients.tool import ClientTool, Load, Outcome, Target
from benchmarks.clients.vllm_bench import VllmBench
from benchmarks.result import ScenarioResult
from cluster.load.started_service import started_service
from cluster.load.table import number
from engine.modelfiles.prepare import prepare_model
from pdserve.errors import ConfigError

SUMMARY = "aiperf, guidellm, vllm bench serve, openai and grpcurl against a whole service"
_TOOLS: tuple[ClientTool, ...] = (Aiperf(), Guidellm(), VllmBench(), OpenaiClient(), Grpcurl())
_SESSIONS = frozenset({"openai", "grpcurl"})  # one run whatever the endpoint
_HEAD = ("client", "endpoint", "done", "failed", "TTFT p50 ms", "ITL p50 ms",
         "output tokens/s", "took s")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--environments", type=Path, required=True, help="folder of the tools")
    parser.add_argument("--tool", action="append", choices=[tool.name for tool in _TOOLS])
    parser.add_argument("--endpoint", action="append", choices=("chat", "completions"),
                        help="default: both")  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--num-requests", type=int, default=24)
    parser.add_argument("--isl", type=int, default=128, help="prompt tokens")
    parser.add_argument("--osl", type=int, default=32, help="output tokens")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="longest run of a tool")
    parser.add_argument("--record", type=Path, help="folder for what the tools send")
    parser.add_argument("--model", default="smollm2", help="as for pdserve serve")
    parser.add_argument("serve_flags", nargs="*", metavar="-- SERVE_FLAG",
                        help="options of pdserve serve")  # fmt: skip


def run(args: argparse.Namespace) -> ScenarioResult:
    runs = _runs(args)
    if args.record is not None:
        args.record.mkdir(parents=True, exist_ok=True)
    outcomes = uvloop.run(_run_all(args, runs))
    rows = [
        _HEAD,
        *(_row(each, outcome, took) for each, (outcome, took) in zip(runs, outcomes, strict=True)),
    ]
    data = [
        {"client": each.tool.name, **asdict(each.load), "outcome": asdict(outcome), "took_s": took}
        for each, (outcome, took) in zip(runs, outcomes, strict=True)
    ]
    return ScenarioResult(rows, {"runs": data})


@dataclass(frozen=True, slots=True)
class ToolRun:
    tool: ClientTool
    program: str
    load: Load

    @property
    def name(self) -> str:
        return (
            self.tool.name
            if self.tool.name in _SESSIONS
            else f"{self.tool.name}-{self.load.endpoint}"
        )


def _runs(args: argparse.Namespace) -> list[ToolRun]:
    """Raises ConfigError for a tool that was named and is not there, or if there is none."""
    load = Load("chat", args.isl, args.osl, args.concurrency, args.num_requests)
    runs = []
    for tool in _TOOLS:
        if args.tool and tool.name not in args.tool:
            continue
        program = args.environments.absolute() / tool.name / "bin" / tool.program
        if tool.program and not program.is_file():
            if args.tool:
                raise ConfigError(f"environments: {program} is not there; see make_environments")
            print(f"{tool.name} is not installed in {args.environments}: left out")
            continue
        endpoints = ["chat"] if tool.name in _SESSIONS else args.endpoint or ["chat", "completions"]
        runs += [ToolRun(tool, str(program), replace(load, endpoint=each)) for each in endpoints]
    return runs


async def _run_all(
    args: argparse.Namespace, runs: Sequence[ToolRun]
) -> list[tuple[Outcome, float]]:
    prepared = prepare_model(args.model, "float32")
    with tempfile.TemporaryDirectory(prefix="pdserve-clients-") as name:
        scratch = Path(name)
        tokenizer = scratch / "tokenizer"
        tokenizer.mkdir()
        write_tokenizer_folder(prepared, tokenizer)
        async with started_service([f"--model={args.model}", *args.serve_flags]) as facts:
            target = Target(facts.http_url, facts.grpc_target, facts.model, tokenizer)
            return [await _run_one(each, target, _folder(scratch, each), args) for each in runs]


def _folder(scratch: Path, each: ToolRun) -> Path:
    folder = scratch / each.name
    folder.mkdir()
    return folder


async def _run_one(
    each: ToolRun, target: Target, out: Path, args: argparse.Namespace
) -> tuple[Outcome, float]:
    if args.record is None:
        return await _watched(each, target, out, args.timeout_s)
    async with recording(target.url) as (url, recorder):
        done = await _watched(each, replace(target, url=url), out, args.timeout_s)
        if recorder.kinds:
            recorder.save(args.record / f"{each.name}.json", each.name)
        return done


async def _watched(
    each: ToolRun, target: Target, out: Path, timeout_s: float
) -> tuple[Outcome, float]:
    """Run to its end; its own output goes to a file, of which the end is shown if it failed."""
    command = each.tool.command(each.program, target, each.load, out)
    log = out.with_suffix(".log")
    print("    " + " ".join(command), flush=True)
    started_s = time.monotonic()
    with log.open("wb") as lines:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=lines, stderr=lines,
            env={**os.environ, **each.tool.environment},
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                status = await process.wait()
        except TimeoutError:
            process.kill()
            status = await process.wait()
    took_s = time.monotonic() - started_s
    try:
        outcome = each.tool.outcome(out)
    except (OSError, ValueError, LookupError) as error:
        print(f"{each.name}: no result: {error!r}")
        outcome = Outcome(0, each.load.num_requests)
    if outcome.num_failed:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        print(f"{each.name}: exit {status}, {outcome.num_failed} failed\n{tail}")
    return outcome, took_s


def _row(each: ToolRun, outcome: Outcome, took_s: float) -> tuple[str, ...]:
    figures = (outcome.ttft_ms, outcome.itl_ms, outcome.output_tokens_per_s)
    cells = ("-" if figure is None else number(figure) for figure in figures)
    endpoint = "-" if each.tool.name in _SESSIONS else each.load.endpoint
    return (
        each.tool.name, endpoint, str(outcome.num_done), str(outcome.num_failed), *cells,
        number(took_s),
    )  # fmt: skip
