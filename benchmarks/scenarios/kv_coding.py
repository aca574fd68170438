"""What KV in 8 bits a value costs in truth and saves in bytes, on a real model and real text.

Texts are beginnings of this repository's documents. First the error: this process computes each
text's KV and codes it. Then the answers: for each coding a service of one prefill and one decode
worker over tcp is up, and every text is continued greedily by all of them in turns. Columns:

    max, mean    largest and mean |error| of a value, and the mean over the mean |value|
    KV           bytes that travelled, of all texts
    equal        answers that equal the exact service's token for token
    before       share of the tokens that come before an answer's first difference
    exposed      first token at the router -> verified commit (the ledger's), median

"exact" a second time is the noise. Not covered: a link slower than loopback, where bytes are time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.result import ScenarioResult
from benchmarks.scenarios.engine import compute_prompt
from cluster.load.started_service import started_service
from cluster.load.table import number
from engine.block_pool import BlockPool
from engine.build import build_runner, prepare
from engine.config import EngineConfig
from engine.sequence import Sequence as EngineSequence
from engine.step import StepRunner
from kvtransfer.coding import CODINGS, EXACT, coded_block_bytes
from kvtransfer.compress import compress, expand
from pdserve.clock import MonotonicClock
from pdserve.errors import ProtocolError
from pdserve.types import Attempt, KVLayout, Request, RequestId, SamplingParams
from router.client import AsyncClient
from router.tokenizer import TextModel

SUMMARY = "error, bytes, equal greedy tokens and exposed time of KV in 8 bits a value"
_DOCUMENTS = Path(__file__).parents[2] / "docs"
_KV_MIB = 512.0
_COLUMNS = ("coding", "max", "mean", "of mean %", "KV MiB", "equal", "before %", "exposed ms")


@dataclass(frozen=True, slots=True)
class Answer:
    token_ids: tuple[int, ...]
    exposed_s: float
    kv_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--isl", type=int, default=256, help="tokens of each text")
    parser.add_argument("--osl", type=int, default=32, help="output tokens")
    parser.add_argument("--texts", type=int, default=12, help="most documents that are used")


def run(args: argparse.Namespace) -> ScenarioResult:
    errors, answers = asyncio.run(_measure(args))
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for name, given in answers.items():
        rows.append((name, *_error_cells(errors.get(name)), *_answer_cells(given, answers[EXACT])))
    data = {
        "dtype": args.dtype, "isl": args.isl, "osl": args.osl, "errors": errors,
        "num_texts": len(answers[EXACT]),
        "exposed_s": {name: [each.exposed_s for each in given] for name, given in answers.items()},
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


def _error_cells(error: tuple[float, float, float] | None) -> tuple[str, ...]:
    if error is None:
        return ("0", "0", "0")
    most, mean, mean_value = error
    return number(most), f"{mean:.4f}", number(100 * mean / mean_value)


def _answer_cells(given: Sequence[Answer], exact: Sequence[Answer]) -> tuple[str, ...]:
    pairs = [(one.token_ids, other.token_ids) for one, other in zip(given, exact, strict=True)]
    num_equal = sum(one == other for one, other in pairs)
    before = sum(_num_alike(*pair) for pair in pairs) / sum(len(other) for _, other in pairs)
    return (
        number(sum(each.kv_bytes for each in given) / 2**20), f"{num_equal} of {len(given)}",
        number(100 * before), number(1e3 * statistics.median(each.exposed_s for each in given)),
    )  # fmt: skip


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


async def _measure(
    args: argparse.Namespace,
) -> tuple[dict[str, tuple[float, float, float]], dict[str, list[Answer]]]:
    config = replace(EngineConfig(), model=args.model, dtype=args.dtype, kv_memory_mib=_KV_MIB)
    model = prepare(config, print)
    tokenizer = TextModel.load(model)
    texts = [path.read_text(encoding="utf-8") for path in sorted(_DOCUMENTS.glob("*.md"))]
    prompts = [(await tokenizer.encode_prompt(text))[: args.isl] for text in texts[: args.texts]]
    runner = build_runner(config, model, MonotonicClock())
    try:
        errors = await _errors(runner, prompts, config.chunk_tokens)
    finally:
        await runner.close()
    return errors, await _answers(args, prompts)


async def _errors(
    runner: StepRunner, prompts: Sequence[tuple[int, ...]], chunk_tokens: int
) -> dict[str, tuple[float, float, float]]:
    """By coding: largest and mean |error|, mean |value|, over all texts."""
    kept = [await _computed_kv(runner, prompt, chunk_tokens) for prompt in prompts]
    found: dict[str, tuple[float, float, float]] = {}
    for coding in CODINGS:
        held, off = torch.empty(0), torch.empty(0)
        for blocks, prompt in zip(kept, prompts, strict=True):
            exact = _values(runner.layout, blocks, len(prompt))
            came = _values(runner.layout, _coded(runner.layout, coding, blocks, len(prompt)),
                           len(prompt))  # fmt: skip
            held, off = torch.cat((held, exact)), torch.cat((off, (came - exact).abs()))
        found[coding] = (off.max().item(), off.mean().item(), held.abs().mean().item())
    return found


async def _computed_kv(
    runner: StepRunner, prompt: tuple[int, ...], chunk_tokens: int
) -> list[memoryview]:
    """A copy of the blocks of one text."""
    lease = BlockPool(runner.buffers.num_blocks).lease(runner.layout.num_blocks(len(prompt) + 1))
    assert lease is not None, "an empty pool holds one text"
    request = Request(RequestId("kv-coding"), prompt, SamplingParams(max_tokens=2))
    sequence = EngineSequence(Attempt(request, 1), lease)
    await compute_prompt(runner, sequence, chunk_tokens)
    num_blocks = runner.layout.num_blocks(len(prompt))
    views = [runner.buffers.view(block_id) for block_id in lease.block_ids[:num_blocks]]
    blocks = [memoryview(bytearray(view)) for view in views]
    sequence.lease.release()
    return blocks


def _coded(
    layout: KVLayout, coding: str, blocks: Sequence[memoryview], num_tokens: int
) -> list[memoryview]:
    payload, size = compress(layout, coding, blocks, num_tokens), coded_block_bytes(layout, coding)
    coded = [payload[start : start + size] for start in range(0, len(payload), size)]
    out = [memoryview(bytearray(layout.block_bytes)) for _ in blocks]
    expand(layout, coding, coded, out)
    return out


def _values(layout: KVLayout, blocks: Sequence[memoryview], num_tokens: int) -> torch.Tensor:
    dtype, rows = getattr(torch, layout.dtype), (-1, layout.block_size, layout.head_dim)
    whole = torch.cat([torch.frombuffer(each, dtype=dtype).view(rows) for each in blocks], 1)
    return whole[:, :num_tokens].float().flatten()


async def _answers(
    args: argparse.Namespace, prompts: Sequence[tuple[int, ...]]
) -> dict[str, list[Answer]]:
    ways = {EXACT: EXACT, "exact again": EXACT, **{coding: coding for coding in CODINGS}}
    answers: dict[str, list[Answer]] = {way: [] for way in ways}
    async with contextlib.AsyncExitStack() as stack:
        clients = {way: await _service(stack, args, coding) for way, coding in ways.items()}
        for client in clients.values():
            await _answer(
                client, prompts[0][:32], args.osl
            )  # the first of a service is not counted
        for prompt in prompts:
            for way, client in clients.items():
                answers[way].append(await _answer(client, prompt, args.osl))
    return answers


async def _service(
    stack: contextlib.AsyncExitStack, args: argparse.Namespace, coding: str
) -> AsyncClient:
    flags = (
        f"--model={args.model}", f"--dtype={args.dtype}", f"--kv-memory-mib={_KV_MIB}",
        "--threads=1", "--prefix-cache=off", "--kv-transports=tcp", f"--kv-in-flight={coding}",
    )  # fmt: skip
    facts = await stack.enter_async_context(started_service(flags))
    return await stack.enter_async_context(AsyncClient(facts.grpc_target))


async def _answer(client: AsyncClient, prompt: Sequence[int], max_tokens: int) -> Answer:
    """Raises ProtocolError if the service sent no ledger."""
    token_ids: list[int] = []
    stream = client.generate(
        prompt_ids=prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
    )
    async for delta in stream:
        token_ids += delta.token_ids
    if stream.timing is None:
        raise ProtocolError("an answer without a ledger")
    return Answer(tuple(token_ids), stream.timing.kv_exposed_s, stream.timing.kv_bytes)
