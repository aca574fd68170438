"""What every program in this folder does: answer questions on stdin, a JSON line each, on stdout.

    {"kind": "text", "ids": [...], "new": 8}                     -> {"ids": [...]} greedy
    {"kind": "prefill", "tokens": 512}                           -> {"seconds": ...}
    {"kind": "decode", "batch": 8, "context": 128, "steps": 16}  -> {"seconds": ...} of all steps
    anything else a program knows                                -> what it says

The first line is {"ready": name and version}. Settings come as one JSON argument. Runs in the
environment of the peer, so it and its callers import nothing of pdserve.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Settings:
    """``folder``: the model as a Hugging Face folder. ``gguf``: as a GGUF file, or "".

    ``work``: where a peer may keep files it makes of the model."""

    dtype: str  # "float32" | "bfloat16" | "int8": weights of 8 bits, each peer's own way
    threads: int
    model: str
    folder: str
    gguf: str
    work: str
    vocab_size: int


class Peer(Protocol):
    name: str

    def greedy(self, ids: list[int], num_new: int) -> list[int]: ...

    def prefill(self, ids: list[int]) -> float:
        """Seconds until the first token after the prompt is known."""

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds of ``steps`` steps of ``batch`` rows that stand at ``context``."""


def serve(make: Callable[[Settings], Peer]) -> None:
    """Bind to the first ``threads`` cores, make the peer, answer until stdin ends."""
    end_with_parent()
    settings = Settings(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    Path(settings.work).mkdir(parents=True, exist_ok=True)
    # Libraries print to stdout; answers keep the pipe and everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = make(settings)
    print(json.dumps({"ready": peer.name}), file=answers)
    draw = random.Random(0)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(_answer(peer, question, settings, draw)), file=answers)


def end_with_parent() -> None:
    """A stopped process sees no end of its input: the kernel must end it (Linux)."""
    set_death_signal = 1  # PR_SET_PDEATHSIG
    if ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_PDEATHSIG)")


def _answer(
    peer: Peer, question: dict[str, Any], settings: Settings, draw: random.Random
) -> dict[str, Any]:
    kind = question["kind"]
    if kind == "text":
        return {"ids": peer.greedy(question["ids"], question["new"])}
    if kind == "prefill":
        ids = random_ids(draw, question["tokens"], settings.vocab_size)
        return {"seconds": peer.prefill(ids)}
    if kind == "decode":
        parts = (question["batch"], question["context"], question["steps"])
        return {"seconds": peer.decode(*parts)}
    return getattr(peer, kind)()


def random_ids(draw: random.Random, num_tokens: int, vocab_size: int) -> list[int]:
    return [draw.randrange(100, vocab_size) for _ in range(num_tokens)]


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
