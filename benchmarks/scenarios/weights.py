"""What int8 weights cost and save: perplexity, equal choices, and speed, beside full ones.

The text is Python's own reference manual as the standard library ships it (pydoc_data.topics, by
topic in alphabetical order), in windows of equal length that each start anew. Both models read the
same tokens; a token counts as equal if both find it likeliest after the same text. Speed is
interleaved, round by round: prefill of one window, decode steps over KV of zeros, the C call or
torch alone, without sampling. ``--model`` may be a GGUF file: with Q8_0 inside both hold the same
numbers, and the difference is that of rounding them to ``--dtype``.
"""

from __future__ import annotations

import argparse
import math
import os
import pydoc_data.topics
import statistics
import time
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from benchmarks.result import ScenarioResult
from cluster.load.table import number, spread_cell
from engine.block_pool import BlockPool
from engine.kv_cache import KvCache
from engine.model_choice import open_step_model
from engine.modelfiles.prepare import model_summary, prepare_model
from engine.modelfiles.weights import map_weights
from engine.sequence import Sequence
from engine.step import StepRow
from engine.step_models import StepModel
from pdserve.prepared import PreparedModel
from pdserve.types import Attempt, KVLayout, Request, RequestId, SamplingParams

SUMMARY = "int8 weights beside full ones: perplexity, equal greedy tokens, speed"

WEIGHTS = ("full", "int8")
BLOCK_SIZE = 16
TOKENS_AT_ONCE = 128  # whose logits are held at once
CONTEXT = 128  # of decode rows


@dataclass
class Reading:
    """One model; what it made of the text."""

    prepared: PreparedModel
    model: StepModel
    layout: KVLayout
    pool: BlockPool
    loss: float = 0.0  # sum of -log p of the next token
    choices: list[torch.Tensor] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--native", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="decode steps in one repetition")


def run(args: argparse.Namespace) -> ScenarioResult:
    torch.set_num_threads(args.threads)
    readings = {weights: _open(weights, args) for weights in WEIGHTS}
    windows = _windows(readings["full"].prepared, args)
    with torch.inference_mode():
        for repetition in range(args.repeat + 1):
            for reading in readings.values():
                _time(reading, windows[0], args, is_kept=repetition > 0)
        for window in windows:
            for reading in readings.values():
                _read(reading, window)
    for reading in readings.values():
        reading.model.close()
    return _result(readings, sum(len(window) - 1 for window in windows))


def _open(weights: str, args: argparse.Namespace) -> Reading:
    prepared = prepare_model(args.model, args.dtype, weights=weights, progress=print)
    shape = prepared.config
    layout = KVLayout(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, prepared.dtype
    )
    tokens = max(
        args.window_tokens, max(args.batch, default=1) * (CONTEXT + args.steps + BLOCK_SIZE)
    )
    num_blocks = layout.num_blocks(tokens) + 1
    device = torch.device("cpu")
    cache = KvCache(layout, num_blocks, device)
    model = open_step_model(
        args.native, prepared, map_weights(prepared), cache, device, num_threads=args.threads
    )
    return Reading(prepared, model, layout, BlockPool(num_blocks))


def _windows(prepared: PreparedModel, args: argparse.Namespace) -> list[tuple[int, ...]]:
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))
    size, count = args.window_tokens, args.windows
    if count < 1 or size < 2:
        raise SystemExit("--windows: at least 1, --window-tokens: at least 2")
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    ids = tokenizer.encode(text[: 8 * size * count]).ids
    if len(ids) < size * count:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than {count} x {size}")
    return [tuple(ids[at : at + size]) for at in range(0, size * count, size)]


def _sequence(reading: Reading, ids: tuple[int, ...]) -> Sequence:
    request = Request(RequestId("text"), ids, SamplingParams(max_tokens=1))
    lease = reading.pool.lease(reading.layout.num_blocks(len(ids)))
    assert lease is not None
    return Sequence(Attempt(request, 1), lease)


def _read(reading: Reading, ids: tuple[int, ...]) -> None:
    sequence = _sequence(reading, ids)
    for first in range(0, len(ids) - 1, TOKENS_AT_ONCE):
        end = min(first + TOKENS_AT_ONCE, len(ids) - 1)
        rows = [StepRow(sequence, at, 1, samples=True) for at in range(first, end)]
        logits = reading.model.stage(rows).compute()
        following = torch.tensor(ids[first + 1 : end + 1])
        loss = torch.nn.functional.cross_entropy(logits, following, reduction="sum")
        reading.loss += float(loss)
        reading.choices.append(logits.argmax(-1))
    sequence.lease.release()


def _time(
    reading: Reading, window: tuple[int, ...], args: argparse.Namespace, *, is_kept: bool
) -> None:
    prompt = _sequence(reading, window)
    started = time.perf_counter()
    for at in range(0, len(window), 256):
        row = StepRow(prompt, at, min(256, len(window) - at), samples=at + 256 >= len(window))
        reading.model.stage([row]).compute()
    _keep(reading, f"prefill {len(window):,}", len(window), started, is_kept)
    prompt.lease.release()
    for batch in args.batch:
        ids = (0,) * (CONTEXT + args.steps)
        sequences = [_sequence(reading, ids) for _ in range(batch)]
        started = time.perf_counter()
        for step in range(args.steps):
            rows = [StepRow(s, CONTEXT + step, 1, samples=True) for s in sequences]
            reading.model.stage(rows).compute()
        _keep(reading, f"decode b={batch} at {CONTEXT}", batch * args.steps, started, is_kept)
        for sequence in sequences:
            sequence.lease.release()


def _keep(reading: Reading, case: str, tokens: int, started: float, is_kept: bool) -> None:
    if is_kept:
        reading.rates.setdefault(case, []).append(tokens / (time.perf_counter() - started))


def _result(readings: dict[str, Reading], num_tokens: int) -> ScenarioResult:
    full, int8 = (readings[weights] for weights in WEIGHTS)
    mib = {w: model_summary(r.prepared).weight_bytes / 2**20 for w, r in readings.items()}
    perplexity = {w: math.exp(r.loss / num_tokens) for w, r in readings.items()}
    equal = float((torch.cat(full.choices) == torch.cat(int8.choices)).double().mean())
    change = perplexity["int8"] / perplexity["full"] - 1
    rows: list[tuple[str, ...]] = [("", *WEIGHTS, "int8 / full")]
    rows.append(
        ("weights MiB", *(number(mib[w]) for w in WEIGHTS), f"{mib['int8'] / mib['full']:.3f}")
    )
    rows.append(("perplexity", *(f"{perplexity[w]:.4f}" for w in WEIGHTS), f"{change:+.2%}"))
    rows.append(("equal greedy tokens", "", f"{equal:.2%}", f"of {num_tokens:,}"))
    for case, rates in full.rates.items():
        ratio = statistics.median(int8.rates[case]) / statistics.median(rates)
        cells = (spread_cell(r.rates[case]) for r in (full, int8))
        rows.append((f"{case} tokens/s", *cells, f"{ratio:.2f}"))
    data = {
        "kernels": {w: r.model.kernels for w, r in readings.items()},
        "num_tokens": num_tokens, "perplexity": perplexity, "equal_share": equal,
        "weights_mib": mib, "rates": {w: r.rates for w, r in readings.items()},
    }  # fmt: skip
    return ScenarioResult(rows=rows, data=data)
