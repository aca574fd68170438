"""The engine beside its peers, in turns: ``python -m benchmarks.run engine --against ...``.

All contestants of a data type and number of threads are alive at once, and stopped while another
has its turn. A round asks each cell of each of them, beginning with another one each round. What
the machine can do (read bandwidth, rate of the largest product) is measured in the same rounds. A
peer whose first greedy tokens after one chat prompt differ from ours is shown and is no peer to
beat. Not covered: peers that cannot load the model; peers' memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contestant import Contestant
from benchmarks.limits import INT8, decode_floor, number_options, prefill_floor
from benchmarks.peers.model_folder import write_folder
from benchmarks.result import ScenarioResult
from cluster.load.table import spread_cell
from engine.build import prepare
from engine.config import EngineConfig
from engine.modelfiles.resolve import SourceKind, resolve_source

OWN = "pdserve"
MODULES = {
    OWN: "benchmarks.peers.own",
    "llama-cpp": "benchmarks.peers.llama_cpp",
    "vllm": "benchmarks.peers.vllm_cpu",
    "vllm-compiled": "benchmarks.peers.vllm_compiled",
    "transformers": "benchmarks.peers.hugging_face",
}
WORK = Path("build/benchmarks/peers")
# SmolLM2's template around "What is the capital of France?"
CHAT_IDS = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
NUM_COMPARED = 8
NUM_COMPARED_INT8 = 4
HEAD = ("cell", "tokens/s", "of floor", "best peer", "times it", "others")


@dataclass(frozen=True, slots=True)
class Cell:
    kind: str  # "prefill" | "decode"
    tokens: int  # of the prompt, or the context of decode rows
    batch: int = 1

    @property
    def name(self) -> str:
        if self.kind == "prefill":
            return f"prefill {self.tokens:,}"
        return f"decode b={self.batch} at {self.tokens:,}"

    def rate(self, contestant: Contestant, steps: int) -> float:
        """Tokens/s of one turn."""
        if self.kind == "prefill":
            return self.tokens / float(contestant.ask("prefill", tokens=self.tokens)["seconds"])
        parts = {"batch": self.batch, "context": self.tokens, "steps": steps}
        return self.batch * steps / float(contestant.ask("decode", **parts)["seconds"])


CELLS = (
    Cell("prefill", 128), Cell("prefill", 512), Cell("prefill", 2048),
    Cell("decode", 128), Cell("decode", 1024), Cell("decode", 128, 8), Cell("decode", 128, 32),
)  # fmt: skip


def parse_against(text: str) -> dict[str, str]:
    """PEER=PYTHON,... -> interpreter by peer.

    Raises:
        SystemExit: no such peer.
    """
    found = {}
    for part in text.split(","):
        kind, _, python = part.partition("=")
        if kind not in MODULES or kind == OWN:
            known = ", ".join(name for name in MODULES if name != OWN)
            raise SystemExit(f"--against: {kind!r} is none of {known}")
        found[kind] = python or sys.executable
    return found


def compare(args: argparse.Namespace) -> ScenarioResult:
    rows: list[tuple[str, ...]] = [HEAD]
    data: dict[str, object] = {}
    if INT8 in args.against_dtypes and set(parse_against(args.against)) != {"llama-cpp"}:
        raise SystemExit("--against-dtypes int8: of the peers llama-cpp alone has such weights")
    for dtype in args.against_dtypes:
        for threads in args.against_threads:
            group = _Group(args, dtype, threads)
            group.run()
            rows += group.rows()
            data[f"{dtype}, {threads} threads"] = group.data()
    return ScenarioResult(rows=rows, data=data)


class _Group:
    """One data type and number of threads."""

    def __init__(self, args: argparse.Namespace, dtype: str, threads: int) -> None:
        self._args, self._dtype, self._threads = args, dtype, threads
        cells = [cell for cell in CELLS if args.cells in cell.name]
        if not cells:
            raise SystemExit(f"--cells: {args.cells!r} is in none of {[c.name for c in CELLS]}")
        self._rates: dict[Cell, dict[str, list[float]]] = {cell: {} for cell in cells}
        self._load: list[float] = []
        self._phases: dict[str, dict[str, float]] = {}
        self._machine: list[dict[str, float]] = []
        self._names: dict[str, str] = {}
        self._texts: dict[str, list[int]] = {}
        self._shape: dict[str, int] = {}

    def run(self) -> None:
        with ExitStack() as stack:
            contestants = [stack.enter_context(closing(c)) for c in self._start()]
            own = contestants[0]
            self._shape = own.ask("shape")
            for contestant in contestants:
                self._names[contestant.kind] = contestant.name
                answer = contestant.ask("text", ids=CHAT_IDS, new=NUM_COMPARED)
                self._texts[contestant.kind] = answer["ids"][:NUM_COMPARED]
            for number in range(self._args.rounds + 1):  # the first warms up
                first = number % len(contestants)
                self._round(number, contestants[first:] + contestants[:first])

    def _start(self) -> Iterator[Contestant]:
        settings = _settings(self._args, self._dtype, self._threads)
        kinds = {OWN: sys.executable, **parse_against(self._args.against)}
        for kind, python in kinds.items():
            module = MODULES[kind]
            log = WORK / f"{kind}-{self._dtype}-{self._threads}.log"
            yield Contestant(kind, python, module, settings, log)

    def _round(self, number: int, contestants: list[Contestant]) -> None:
        self._load.append(os.getloadavg()[0])
        for cell in self._rates:
            for contestant in contestants:
                rate = cell.rate(contestant, self._args.steps)
                if number:
                    self._rates[cell].setdefault(contestant.kind, []).append(rate)
                if contestant.kind == OWN:
                    self._phases[cell.name] = contestant.ask("phases")
        for contestant in contestants:
            if contestant.kind == OWN:
                self._machine.append(contestant.ask("machine"))
        print(f"{self._dtype}, {self._threads} threads: round {number}", file=sys.stderr)

    def rows(self) -> list[tuple[str, ...]]:
        read, products = self._limits()
        title = f"{self._dtype}, {self._threads} thread(s)"
        floor = f"{read / 1e9:.1f} GB/s, {products / 1e9:,.0f} GFLOP/s"
        rows = [(title, "", floor, "", f"load average up to {max(self._load):.1f}", "")]
        for cell, rates in self._rates.items():
            own = statistics.median(rates[OWN])
            peers = {k: statistics.median(v) for k, v in rates.items() if k != OWN}
            valid = {k: v for k, v in peers.items() if self._is_valid(k)}
            best = max(valid, key=lambda kind: valid[kind], default="")
            times = ""
            if best:
                each = [a / b for a, b in zip(rates[OWN], rates[best], strict=True)]
                times = f"{own / valid[best]:.2f} ({min(each):.2f}-{max(each):.2f})"
            others = [
                f"{k} {spread_cell(rates[k])}{'' if self._is_valid(k) else ' (other text)'}"
                for k in peers
                if k != best
            ]
            rows.append((
                cell.name, spread_cell(rates[OWN]), f"{own / self._floor(cell):.0%}",
                f"{best} {spread_cell(rates[best])}" if best else "-", times, ", ".join(others),
            ))  # fmt: skip
        return rows

    def data(self) -> dict[str, object]:
        rates = {cell.name: found for cell, found in self._rates.items()}
        floors = {cell.name: self._floor(cell) for cell in self._rates}
        return {
            "names": self._names, "texts": self._texts, "rates": rates, "floors": floors,
            "machine": self._machine, "load": self._load,
            "phase_seconds_of_the_last_turn": self._phases,
        }  # fmt: skip

    def _is_valid(self, kind: str) -> bool:
        # Each rounds weights to 8 bits its own way: a sentence ends otherwise, it begins the same.
        count = NUM_COMPARED_INT8 if self._dtype == INT8 else NUM_COMPARED
        return self._texts[kind][:count] == self._texts[OWN][:count]

    def _limits(self) -> tuple[float, float]:
        """Bytes/s and operations/s: medians over rounds, of the better way to multiply."""
        read = statistics.median(found["read"] for found in self._machine)
        by = [
            statistics.median(found[way] for found in self._machine) for way in ("torch", "kernels")
        ]
        return read, max(by)

    def _floor(self, cell: Cell) -> float:
        read, products = self._limits()
        if cell.kind == "prefill":
            return prefill_floor(self._shape, cell.tokens, products)
        return decode_floor(
            self._shape, cell.batch, cell.tokens, self._dtype,
            operations_per_s=products, bytes_per_s=read,
        )  # fmt: skip


def _settings(args: argparse.Namespace, dtype: str, threads: int) -> dict[str, Any]:
    """What every contestant is told: the model in the forms they read."""
    WORK.mkdir(parents=True, exist_ok=True)
    prepared = prepare(replace(EngineConfig(), model=args.model, dtype="float32"), print)
    prepare(replace(EngineConfig(), model=args.model, **number_options(dtype)), print)
    source = resolve_source(args.model)
    work = (WORK / prepared.folder.name).absolute()
    return {
        "dtype": dtype, "threads": threads, "model": args.model,
        "folder": str(write_folder(prepared, work / "hf")),
        "gguf": str(source.path) if source.kind is SourceKind.GGUF else "",
        "work": str(work), "vocab_size": prepared.config.vocab_size,
    }  # fmt: skip
