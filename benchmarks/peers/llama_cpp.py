"""llama.cpp by llama-cpp-python's low-level calls, answering as turns.py says.

Its GGUF files in float32 and bfloat16 are made from the model's own by its own quantiser, once. KV
is float16 and flash attention at its default: llama.cpp's own choices. A decode step is
``llama_decode`` alone; next tokens are random, nothing is sampled.
"""

from __future__ import annotations

import ctypes
import os
import random
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.turns import Settings, random_ids, serve

FILE_TYPES = {"float32": 0, "bfloat16": 32, "int8": 7}  # Q8_0; llama.h's LLAMA_FTYPE_...


class LlamaCpp:
    def __init__(self, settings: Settings) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._settings = settings
        self.name = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must outlive the library
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        path = str(self._gguf()).encode()
        self._model = llama_cpp.llama_model_load_from_file(path, parameters)
        self._contexts: dict[tuple[int, int], Any] = {}
        self._filled: set[tuple[int, int]] = set()
        self._draw = random.Random(1)

    def greedy(self, ids: list[int], num_new: int) -> list[int]:
        context = self._context(1, 2304)
        self._clear(context)
        found: list[int] = []
        self._run(context, [(t, i, 0, i == len(ids) - 1) for i, t in enumerate(ids)])
        for position in range(len(ids), len(ids) + num_new):
            logits = self._lib.llama_get_logits_ith(context, -1)
            found.append(max(range(self._settings.vocab_size), key=lambda i: logits[i]))
            self._run(context, [(found[-1], position, 0, True)])
        return found

    def prefill(self, ids: list[int]) -> float:
        context = self._context(1, 2304)
        self._clear(context)
        return self._run(context, [(t, i, 0, i == len(ids) - 1) for i, t in enumerate(ids)])

    def decode(self, batch: int, context: int, steps: int) -> float:
        handle = self._context(batch, context + 128, for_decode=True)
        if (batch, context) not in self._filled:
            for row in range(batch):
                ids = random_ids(self._draw, context, self._settings.vocab_size)
                self._run(handle, [(t, i, row, i == context - 1) for i, t in enumerate(ids)])
            self._filled.add((batch, context))
        seconds = 0.0
        for step in range(steps + 1):  # the first warms up
            ids = random_ids(self._draw, batch, self._settings.vocab_size)
            took = self._run(handle, [(t, context + step, r, True) for r, t in enumerate(ids)])
            seconds += took if step else 0.0
        for row in range(batch):
            self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(handle), row, context, -1)
        return seconds

    def _gguf(self) -> Path:
        target = Path(self._settings.work) / f"llama-cpp-{self._settings.dtype}.gguf"
        if target.exists():
            return target
        if not self._settings.gguf:
            raise SystemExit("llama.cpp needs a model that comes as a GGUF file")
        parameters = self._lib.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[self._settings.dtype]
        parameters.allow_requantize = True
        parameters.pure = self._settings.dtype != "float32"
        partial = target.with_suffix(".partial")
        paths = (self._settings.gguf.encode(), str(partial).encode())
        if self._lib.llama_model_quantize(*paths, ctypes.byref(parameters)):
            raise SystemExit(f"llama.cpp could not convert {self._settings.gguf}")
        os.replace(partial, target)
        return target

    def _context(self, batch: int, length: int, for_decode: bool = False) -> Any:
        key = (batch if for_decode else 0, length)
        if key not in self._contexts:
            parameters = self._lib.llama_context_default_params()
            parameters.n_ctx = length * batch
            parameters.n_batch, parameters.n_ubatch = 2048, 512
            parameters.n_seq_max = batch
            parameters.n_threads = parameters.n_threads_batch = self._settings.threads
            if hasattr(parameters, "kv_unified"):
                parameters.kv_unified = False
            self._contexts[key] = self._lib.llama_init_from_model(self._model, parameters)
        return self._contexts[key]

    def _clear(self, context: Any) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(context), False)

    def _run(self, context: Any, tokens: list[tuple[int, int, int, bool]]) -> float:
        """Seconds of one llama_decode. tokens: (id, position, sequence, whether logits count)"""
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wants_logits) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wants_logits
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row
        started = time.perf_counter()
        status = self._lib.llama_decode(context, batch)
        self._lib.llama_synchronize(context)
        seconds = time.perf_counter() - started
        self._lib.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode: status {status}")
        return seconds


if __name__ == "__main__":
    serve(LlamaCpp)
