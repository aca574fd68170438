"""transformers on torch (sdpa, dynamic cache), answering as turns.py says. Argmax is in a step."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from benchmarks.peers.turns import Settings, random_ids, serve


class Transformers:
    def __init__(self, settings: Settings) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        import transformers

        torch.set_num_threads(settings.threads)
        torch.set_grad_enabled(False)
        self._torch: Any = torch
        self._vocab_size = settings.vocab_size
        self._draw = random.Random(1)
        self.name = f"transformers {transformers.__version__} (torch {torch.__version__})"
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            settings.folder, dtype=getattr(torch, settings.dtype)
        ).eval()

    def greedy(self, ids: list[int], num_new: int) -> list[int]:
        cache, token, found = None, self._torch.tensor([ids]), []
        for _ in range(num_new):
            token, cache = self._step(token, cache)
            found.append(int(token))
        return found

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        self._step(self._torch.tensor([ids]), None)
        return time.perf_counter() - started

    def decode(self, batch: int, context: int, steps: int) -> float:
        prompts = [random_ids(self._draw, context, self._vocab_size) for _ in range(batch)]
        token, cache = self._step(self._torch.tensor(prompts), None)
        started = time.perf_counter()
        for _ in range(steps):
            token, cache = self._step(token, cache)
        return time.perf_counter() - started

    def _step(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


if __name__ == "__main__":
    serve(Transformers)
