"""Whether the ledger adds up: its TTFT beside the client's own, for every request of a mixed run.

Prompts short and long, answers short and long, first by gRPC, then by HTTP, several at a time. The
client states when each began (X-Request-Start; one host, one clock), so the ledger reaches from
there to the write of the first piece, and what is missing comes *after the write*: the socket and
the client, a process of its own on the same cores. A request *holds* if that is at most
``--allow-ms`` or ``--allow-share`` of the client's TTFT, whichever is more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence

from benchmarks.lean_http import LeanHttpFace
from benchmarks.result import ScenarioResult
from cluster.load.arrivals import Job
from cluster.load.faces import GrpcFace, RequestFace
from cluster.load.percentiles import percentile
from cluster.load.records import RequestRecord
from cluster.load.sending import Sender, closed_loop
from cluster.load.started_service import started_service
from cluster.load.table import number
from pdserve.errors import ProtocolError

SUMMARY = "the ledger's TTFT beside the client's, request by request"

PROMPT_TOKENS = (8, 64, 256, 768)
ANSWER_TOKENS = (1, 4, 32)
TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=120, help="requests by each face")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--allow-ms", type=float, default=2.0)
    parser.add_argument("--allow-share", type=float, default=0.02)
    parser.add_argument("--seed", default="0")
    parser.add_argument(
        "flags", nargs="*", default=["--model=smollm2"], help="of pdserve serve, after --"
    )


def run(args: argparse.Namespace) -> ScenarioResult:
    records = asyncio.run(_measure(args))
    head = ("face", "requests", "hold", "without the part before the face", "client TTFT p50 ms",
            "before the face ms: p50, p99, max",
            "after the write ms: p50, p99, max, min")  # fmt: skip
    rows = [head, *(_row(name, found, args) for name, found in records.items())]
    parts = {name: [_parts_s(record) for record in found] for name, found in records.items()}
    return ScenarioResult(rows, {"client's ttft_s, before_face_s, ledger's ttft_s": parts})


async def _measure(args: argparse.Namespace) -> dict[str, list[RequestRecord]]:
    found: dict[str, list[RequestRecord]] = {}
    async with started_service(args.flags) as facts:
        faces: dict[str, RequestFace] = {
            "gRPC": GrpcFace(facts.grpc_target),
            "HTTP": LeanHttpFace(facts.http_url),
        }
        vocab_size = await faces["gRPC"].vocab_size()
        for name, face in faces.items():
            draw = random.Random(f"{args.seed} {name}")
            await _load(face, _jobs(draw, 8, vocab_size), args.concurrency)  # connections made
            jobs = _jobs(draw, args.requests, vocab_size)
            found[name] = await _load(face, jobs, args.concurrency)
            await face.close()
    return found


def _jobs(draw: random.Random, count: int, vocab_size: int) -> list[Job]:
    return [
        Job(
            tuple(draw.randrange(vocab_size) for _ in range(draw.choice(PROMPT_TOKENS))),
            draw.choice(ANSWER_TOKENS),
        )
        for _ in range(count)
    ]


async def _load(face: RequestFace, jobs: Sequence[Job], concurrency: int) -> list[RequestRecord]:
    records = await closed_loop(Sender.start(face, TIMEOUT_S), jobs, concurrency)
    for record in records:
        if record.error or record.timing is None:
            raise ProtocolError(f"a request without its answer or ledger: {record.error}")
    return records


def _parts_s(record: RequestRecord) -> tuple[float, float, float]:
    """TTFT as the client saw it, what it stated, and what the ledger measured."""
    assert record.timing is not None
    return record.ttft_s, record.timing.before_face_s, record.timing.ttft_s


def _row(name: str, records: Sequence[RequestRecord], args: argparse.Namespace) -> tuple[str, ...]:
    parts = [_parts_s(record) for record in records]

    def num_holding(missing_s: Sequence[float]) -> str:
        holds = (
            abs(gap_s) <= max(args.allow_ms / 1e3, args.allow_share * client_s)
            for gap_s, (client_s, _, _) in zip(missing_s, parts, strict=True)
        )
        return f"{sum(holds)}/{len(parts)}"

    before_s = [stated_s for _, stated_s, _ in parts]
    after_s = [client_s - stated_s - ledger_s for client_s, stated_s, ledger_s in parts]
    return (
        name,
        str(len(parts)),
        num_holding(after_s),
        num_holding([client_s - ledger_s for client_s, _, ledger_s in parts]),
        number(percentile([client_s * 1e3 for client_s, _, _ in parts], 50)),
        _spread_ms(before_s, (50, 99, 100)),
        _spread_ms(after_s, (50, 99, 100, 0)),
    )


def _spread_ms(values_s: Sequence[float], percents: Sequence[float]) -> str:
    values_ms = [value_s * 1e3 for value_s in values_s]
    return ", ".join(f"{percentile(values_ms, percent):.2f}" for percent in percents)
