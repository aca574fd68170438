"""One turn: a setup under one load, once. Turns of several setups are interleaved over rounds.

A service that is started is started anew for each turn, so that nothing else of ours runs beside
it and every turn begins alike. Each round begins with another setup.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.load.faces import ServiceFace
from cluster.load.machine_noise import busy_cores
from cluster.load.records import RequestRecord, count_errors
from cluster.load.setups import Setup
from cluster.load.table import spread_cell

Measures = dict[str, float]
RunLoad = Callable[[ServiceFace, int], Awaitable[list[RequestRecord]]]
Measure = Callable[[Sequence[RequestRecord]], Measures]


@dataclass(frozen=True, slots=True)
class Turn:
    """``busy_cores_before``: what others used of the machine just before the service started."""

    setup: Setup
    round: int
    busy_cores_before: float
    load_average: tuple[float, float, float]
    measures: Measures
    errors: dict[str, int]
    records: list[RequestRecord]


async def take_turns(
    setups: Sequence[Setup], num_rounds: int, run_load: RunLoad, measure: Measure
) -> list[Turn]:
    """``run_load`` gets the face and the number of the round."""
    turns: list[Turn] = []
    for number in range(num_rounds):
        first = number % len(setups)
        for setup in [*setups[first:], *setups[:first]]:
            busy, load = await busy_cores(), os.getloadavg()
            print(
                f"round {number + 1}/{num_rounds}: {setup.name} (cores busy before: {busy:.2f})",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            async with setup.opened() as face:
                records = await run_load(face, number)
            turns.append(
                Turn(setup, number, busy, load, measure(records), count_errors(records), records)
            )
    return turns


def rows_of(turns: Sequence[Turn], setups: Sequence[Setup]) -> list[tuple[str, ...]]:
    """A row for each measure, a column for each setup; median and range over the rounds."""
    by_setup = [[turn for turn in turns if turn.setup == setup] for setup in setups]
    names = list(dict.fromkeys(name for turn in turns for name in turn.measures))
    rows: list[tuple[str, ...]] = [("measure", *(setup.name for setup in setups))]
    for name in names:
        cells = (
            spread_cell([turn.measures[name] for turn in mine if name in turn.measures])
            for mine in by_setup
        )
        rows.append((name, *cells))
    rows.append(("errors", *(_errors_cell(mine) for mine in by_setup)))
    busy = (spread_cell([turn.busy_cores_before for turn in mine]) for mine in by_setup)
    rows.append(("cores busy before", *busy))
    return rows


def _errors_cell(turns: Sequence[Turn]) -> str:
    totals: dict[str, int] = {}
    for turn in turns:
        for code, count in turn.errors.items():
            totals[code] = totals.get(code, 0) + count
    return ", ".join(f"{code} {count}" for code, count in sorted(totals.items())) or "none"


def summaries(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """For the runner's JSON: everything but the single requests."""
    return [
        {
            "setup": turn.setup.name,
            "flags": list(turn.setup.flags),
            "round": turn.round,
            "busy_cores_before": turn.busy_cores_before,
            "load_average": list(turn.load_average),
            "measures": turn.measures,
            "errors": turn.errors,
        }
        for turn in turns
    ]


def write_raw(path: Path, turns: Sequence[Turn]) -> None:
    """JSON with every request: times of each chunk in seconds, and its ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = [
        {**summary, "requests": [dataclasses.asdict(record) for record in turn.records]}
        for summary, turn in zip(summaries(turns), turns, strict=True)
    ]
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
