"""Whether the ledger adds up: its TTFT beside the client's own, for every request of a mixed run.

Prompts short and long, answers short and long, first by gRPC, then by HTTP, several at a time. A
request *holds* if the two differ by at most ``--allow-ms`` or ``--allow-share`` of the client's
TTFT, whichever is more. The client runs on the same cores, in a process of its own: what it and
the sockets take is in the difference, and nothing else should be.
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
    head = ("face", "requests", "hold", "client TTFT p50 ms", "client - ledger p50 ms", "p99 ms",
            "max ms", "min ms")  # fmt: skip
    rows = [head, *(_row(name, found, args) for name, found in records.items())]
    pairs = {name: [_pair_s(record) for record in found] for name, found in records.items()}
    return ScenarioResult(rows, {"ttft_s of client and ledger": pairs})


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


def _pair_s(record: RequestRecord) -> tuple[float, float]:
    """TTFT as the client saw it and as the ledger adds up to."""
    assert record.timing is not None
    return record.ttft_s, record.timing.ttft_s


def _row(name: str, records: Sequence[RequestRecord], args: argparse.Namespace) -> tuple[str, ...]:
    pairs = [_pair_s(record) for record in records]
    gaps_ms = [(client_s - ledger_s) * 1e3 for client_s, ledger_s in pairs]
    holds = sum(
        abs(client_s - ledger_s) <= max(args.allow_ms / 1e3, args.allow_share * client_s)
        for client_s, ledger_s in pairs
    )
    return (
        name,
        str(len(pairs)),
        f"{holds}/{len(pairs)}",
        number(percentile([client_s * 1e3 for client_s, _ in pairs], 50)),
        *(f"{percentile(gaps_ms, percent):.2f}" for percent in (50, 99, 100, 0)),
    )
