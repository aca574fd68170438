"""The real engine behind StepRunner: a Llama model, its KV pool, and one thread that computes.

``run`` reads the sequences and lays out the batch on the event loop (the model's ``stage``,
logit_edits.py), then hands the rest to the engine thread, which alone computes. On a CUDA device
too a step has ended when ``run`` returns or raises: nothing it started still writes KV. Anything
torch raises there comes out of ``run``; the step loop makes an EngineFailure of it.

``build_model_runner`` turns options into a runner. Not covered: several devices a model, sharing
memory with other processes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor

import torch

from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.cpu_memory import default_cpu_kv_bytes
from engine.devices import enter_device, free_bytes, parse_device, wait_for_device
from engine.kv_cache import KvCache
from engine.logit_edits import plan_edits
from engine.model_choice import open_step_model
from engine.modelfiles.weights import map_weights
from engine.sampler import SamplingRow, sample
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow
from engine.step_models import StagedStep, StepModel
from pdserve.errors import ConfigError
from pdserve.host_memory import available_memory_bytes
from pdserve.log import event_log
from pdserve.prepared import PreparedModel
from pdserve.types import Attempt, KVLayout, Request, RequestId, SamplingParams

logger = event_log(__name__)

WARM_UP_TOKENS = 33
DEFAULT_GPU_KV_SHARE = 0.8  # of the memory that is free once the weights are loaded
MAX_FULL_CONTEXTS = 64  # no pool is made larger than this many of the longest sequences need


class ModelRunner:
    """Satisfies ``StepRunner``. One step at a time; ``close`` once.

    The constructor loads the weights and checks the kernels: seconds. ``cpus``: cores the engine
    thread and its helpers stay on, empty for any. ``nice``: how far they stand back from the other
    threads of the host, 0 to 19.

    Raises:
        RuntimeError: the device cannot hold the weights or the pool (torch's own error).
    """

    def __init__(
        self,
        prepared: PreparedModel,
        weights: Mapping[str, torch.Tensor],
        *,
        device: str,
        num_blocks: int,
        block_size: int,
        num_threads: int,
        cpus: tuple[int, ...] = (),
        nice: int = 0,
        native: str = "auto",
        attention: str = "auto",
        decode_graphs: bool = True,
    ) -> None:
        config = prepared.config
        self.vocab_size = config.vocab_size
        self.eos_token_ids = prepared.eos_token_ids
        self.layout = KVLayout(
            config.num_layers, config.num_kv_heads, config.head_dim, block_size, prepared.dtype
        )
        self._device = torch.device(device)
        self._num_threads = num_threads
        self._thread = ThreadPoolExecutor(1, "engine", _enter_thread, (num_threads, cpus, nice))
        try:
            self.buffers = KvCache(self.layout, num_blocks, self._device)
            self._model = self._thread.submit(
                self._load, prepared, weights, native, attention, decode_graphs
            ).result()
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def device(self) -> str:
        if self._device.type != "cpu":
            return f"{self._device}, {self.kernels}"
        plural = "" if self._num_threads == 1 else "s"
        return f"cpu, {self._num_threads} thread{plural}, {self.kernels}"

    @property
    def kernels(self) -> str:
        """Which kernels compute, and what varies with the batch if anything does."""
        return self._model.kernels

    def phase_seconds(self) -> dict[str, float]:
        """See ``StepModel``."""
        return self._model.phase_seconds()

    async def run(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]:
        staged, sampling = self._plan(rows)
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._thread, self._step, staged, sampling)
        results: list[SampledToken | None] = [None] * len(rows)
        for index, token in zip(staged.sample_rows, tokens, strict=True):
            results[index] = token
        return results

    async def close(self) -> None:
        """Wait for the running step, if any, and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _nothing)
        self._thread.shutdown()
        self._model.close()
        self.buffers.close()

    def warm_up(self) -> None:
        """Compute a chunk and a decode step, so that no request waits for kernels to be made.

        Writes KV into some blocks, so the pool must be unused. Returns when done.
        """
        num_tokens = min(WARM_UP_TOKENS, self.buffers.num_blocks * self.layout.block_size)
        lease = BlockPool(self.buffers.num_blocks).lease(self.layout.num_blocks(num_tokens))
        assert lease is not None
        request = Request(RequestId("warm-up"), (0,) * num_tokens, SamplingParams())
        sequence = Sequence(Attempt(request, epoch=0), lease)
        for start, count in ((0, num_tokens - 1), (num_tokens - 1, 1)):
            if count:
                row = StepRow(sequence, start, count, samples=start + count == num_tokens)
                self._thread.submit(self._step, *self._plan([row])).result()
        lease.release()

    def _load(
        self, prepared: PreparedModel, weights: Mapping[str, torch.Tensor], native: str,
        attention: str, decode_graphs: bool,
    ) -> StepModel:  # fmt: skip
        enter_device(self._device)
        model = open_step_model(
            native, prepared, weights, self.buffers, self._device,
            num_threads=self._num_threads, attention=attention, decode_graphs=decode_graphs,
        )  # fmt: skip
        logger.info(
            "kernels_chosen",
            device=self._device,
            threads=self._num_threads,
            kernels=model.kernels,
        )
        return model

    def _plan(self, rows: SequenceOf[StepRow]) -> tuple[StagedStep, list[SamplingRow]]:
        staged = self._model.stage(rows)
        return staged, [self._sampling_row(rows[index]) for index in staged.sample_rows]

    def _sampling_row(self, row: StepRow) -> SamplingRow:
        sequence = row.sequence
        edits = plan_edits(sequence, self.eos_token_ids, self.vocab_size)
        return SamplingRow(sequence.sampling, sequence.num_generated, edits)

    def _step(self, staged: StagedStep, rows: SequenceOf[SamplingRow]) -> list[SampledToken]:
        try:
            with torch.inference_mode():
                logits = staged.compute()
                if not rows or staged.best_ids is None:
                    return sample(logits, rows) if rows else []
                return sample(logits, rows, staged.best_ids())
        finally:  # a step without samples waits for nothing else, nor does one that raised
            wait_for_device(self._device)


def _enter_thread(num_threads: int, cpus: tuple[int, ...], nice: int) -> None:
    """First thing in the engine thread; the threads started from it inherit cores and niceness."""
    if nice:
        os.nice(nice)  # on Linux that of this thread alone
    if cpus:
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(num_threads)


def _nothing() -> None:
    pass


def build_model_runner(config: EngineConfig, prepared: PreparedModel, nice: int = 0) -> ModelRunner:
    """A warm runner with the KV memory the options ask for.

    Raises:
        ConfigError: the device is absent or the memory holds no block; names the option.
        ModelFileError: the weights are unusable.
    """
    device = parse_device(config.device)
    cpus = parse_cpus(config.cpus)
    num_threads = config.threads or len(cpus) or len(os.sched_getaffinity(0))
    runner = ModelRunner(
        prepared,
        map_weights(prepared),
        device=str(device),
        num_blocks=_num_blocks(config, prepared, device, num_threads),
        block_size=config.block_size,
        num_threads=num_threads,
        cpus=cpus,
        nice=nice,
        native=config.native,
        attention=config.attention,
        decode_graphs=config.decode_graphs == "on",
    )
    runner.warm_up()
    return runner


def parse_cpus(text: str) -> tuple[int, ...]:
    """Cores of a list such as "0,2-3"; empty for "".

    Raises:
        ConfigError: not a list of cores, or not cores this process may use.
    """
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"cpus: {text!r} is not a list of cores such as '0,2-3'")
        cpus.update(range(int(first), int(last or first) + 1))
    absent = cpus - os.sched_getaffinity(0)
    if absent:
        raise ConfigError(f"cpus: this process may not use {sorted(absent)}")
    return tuple(sorted(cpus))


def _num_blocks(
    config: EngineConfig, prepared: PreparedModel, device: torch.device, num_threads: int
) -> int:
    shape = prepared.config
    layout = KVLayout(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, prepared.dtype
    )
    memory_bytes = config.kv_memory_mib * 2**20
    if not memory_bytes and device.type == "cpu":
        memory_bytes = default_cpu_kv_bytes(num_threads, available_memory_bytes())
    elif not memory_bytes:
        weights_bytes = prepared.weights_path.stat().st_size
        if prepared.weights != "full":  # turned into dtype when they are loaded
            weights_bytes = prepared.num_parameters * layout.dtype_bytes
        memory_bytes = DEFAULT_GPU_KV_SHARE * max(0, free_bytes(device) - weights_bytes)
    num_blocks = int(memory_bytes // layout.block_bytes)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_memory_mib: {memory_bytes / 2**20:g} MiB hold no block of "
            f"{layout.block_bytes} bytes ({config.block_size} tokens)"
        ).advise("raise --kv-memory-mib or lower --block-size")
    longest = config.max_model_len or shape.max_positions
    return min(num_blocks, MAX_FULL_CONTEXTS * layout.num_blocks(longest))
