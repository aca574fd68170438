"""This project's engine, answering as turns.py says; and the machine's limits, by "machine".

A step is the workers' own: batch building, sampling, the hop to the engine thread. Greedy.
"""

from __future__ import annotations

import asyncio
import mmap
import random
import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.limits import number_options
from benchmarks.peers.turns import Settings, random_ids, serve
from engine.block_pool import BlockPool
from engine.build import build_runner, prepare
from engine.chunking import next_chunk_len
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.sequence import Sequence
from engine.step import StepRow
from pdserve.clock import MonotonicClock
from pdserve.types import Attempt, Request, RequestId, SamplingParams

MATRIX_ROWS = 512
READ_BYTES = 256 * 2**20
REPEATS = 3


class Own:
    def __init__(self, settings: Settings) -> None:
        config = replace(
            EngineConfig(),
            model=settings.model, threads=settings.threads, **number_options(settings.dtype),
        )  # fmt: skip
        self._prepared = prepare(config)
        runner = build_runner(config, self._prepared, MonotonicClock())
        assert isinstance(runner, ModelRunner)
        self._runner = runner
        self._chunk_tokens = config.chunk_tokens
        self._threads = settings.threads
        self._dtype = getattr(torch, config.dtype)
        self._pool = BlockPool(runner.buffers.num_blocks)
        self._loop = asyncio.new_event_loop()
        self._draw = random.Random(1)
        self._rows: dict[tuple[int, int], list[Sequence]] = {}
        self.name = f"pdserve ({runner.device})"
        pages = mmap.mmap(-1, READ_BYTES)
        pages.madvise(mmap.MADV_HUGEPAGE)
        self._to_read = torch.frombuffer(pages, dtype=torch.float32).fill_(1.0)

    def greedy(self, ids: list[int], num_new: int) -> list[int]:
        sequence = self._sequence(ids)
        self._compute(sequence)
        for _ in range(num_new - 1):
            self._step([sequence])
        sequence.lease.release()
        return list(sequence.token_ids[len(ids) :])

    def prefill(self, ids: list[int]) -> float:
        sequence = self._sequence(ids)
        self._runner.phase_seconds()
        started = time.perf_counter()
        self._compute(sequence)
        seconds = time.perf_counter() - started
        sequence.lease.release()
        return seconds

    def decode(self, batch: int, context: int, steps: int) -> float:
        if (batch, context) not in self._rows:
            self._rows[batch, context] = [self._computed(context) for _ in range(batch)]
        # The same KV each time: a sequence of its own over blocks that are computed already.
        rows = [
            Sequence(_attempt(tuple(s.token_ids[: context + 1])), s.lease)
            for s in self._rows[batch, context]
        ]
        for sequence in rows:
            sequence.num_computed = context
        self._step(rows)  # warms up
        for sequence in rows:
            sequence.num_computed = context
            del sequence.token_ids[context + 1 :]
        self._runner.phase_seconds()
        started = time.perf_counter()
        for _ in range(steps):
            self._step(rows)
        return time.perf_counter() - started

    def phases(self) -> dict[str, float]:
        """Seconds in each phase of the kernels during the last prefill or decode."""
        return self._runner.phase_seconds()

    def shape(self) -> dict[str, int]:
        config = self._prepared.config
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                 "num_kv_heads", "head_dim")  # fmt: skip
        return {name: getattr(config, name) for name in names}

    def machine(self) -> dict[str, float]:
        """Bytes/s read from memory, and operations/s of the largest product by torch and by the
        kernels in use: the best of a few."""
        config = self._prepared.config
        inputs, outputs = config.hidden_size, 2 * config.intermediate_size
        operations = 2.0 * MATRIX_ROWS * inputs * outputs
        torch.set_num_threads(self._threads)  # the engine leaves it at one
        x, w = (torch.randn(n, inputs).to(self._dtype) for n in (MATRIX_ROWS, outputs))
        F.linear(x, w)
        by_torch = max(operations / _seconds(lambda: F.linear(x, w), 8) for _ in range(REPEATS))
        read = max(READ_BYTES / _seconds(self._to_read.sum, 1) for _ in range(REPEATS))
        torch.set_num_threads(1)
        self.prefill(random_ids(self._draw, MATRIX_ROWS, config.vocab_size))
        gate_up = self.phases().get("gate_up", 0.0)
        by_kernels = config.num_layers * operations / gate_up if gate_up else 0.0
        return {"read": read, "torch": by_torch, "kernels": by_kernels}

    def _computed(self, context: int) -> Sequence:
        ids = random_ids(self._draw, context, self._runner.vocab_size)
        sequence = self._sequence(ids, spare=128)
        self._compute(sequence)
        return sequence

    def _sequence(self, ids: list[int], spare: int = 16) -> Sequence:
        lease = self._pool.lease(self._runner.layout.num_blocks(len(ids) + spare))
        if lease is None:
            raise SystemExit("the sequences of all cases do not fit the KV memory")
        return Sequence(_attempt(tuple(ids)), lease)

    def _compute(self, sequence: Sequence) -> None:
        total = len(sequence.token_ids)
        while sequence.num_computed < total:
            length = next_chunk_len(sequence.num_computed, total, self._chunk_tokens)
            end = sequence.num_computed + length
            row = StepRow(sequence, sequence.num_computed, length, end == total)
            sampled = self._run([row])[0]
            sequence.num_computed = end
            if sampled is not None:
                sequence.append(sampled.token_id)

    def _step(self, sequences: list[Sequence]) -> None:
        rows = [StepRow(s, s.num_computed, s.num_uncomputed, True) for s in sequences]
        for sequence, sampled in zip(sequences, self._run(rows), strict=True):
            assert sampled is not None
            sequence.num_computed = len(sequence.token_ids)
            sequence.append(sampled.token_id)

    def _run(self, rows: list[StepRow]) -> list[Any]:
        return self._loop.run_until_complete(self._runner.run(rows))


def _attempt(ids: tuple[int, ...]) -> Attempt:
    sampling = SamplingParams(max_tokens=4096, ignore_eos=True)
    return Attempt(Request(RequestId("bench"), ids, sampling), 1)


def _seconds(work: Any, times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    serve(Own)
