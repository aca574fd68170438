"""Routing decisions as a table: every candidate with its costs, and what excluded it."""

from __future__ import annotations

from dataclasses import replace

from cluster.decision_table import decision_lines
from support.scripted_backend import DECISIONS


def test_everything_that_is_known_is_there() -> None:
    lines = decision_lines(DECISIONS, 8)
    assert lines[0].startswith("req-scripted: route policy cost, with a cache salt")
    text = "\n".join(lines)
    assert "attempt 1, 250.0 ms after it came: prefill remote (always)" in text
    assert "30 tokens of context; with the answer 50 expected, 60 at most; 2 workers" in text
    (chosen,) = [line.split() for line in lines if line.startswith("  * p0")]
    assert chosen[1:9] == ["p0", "750.00", "500.00", "250.00", "16", "3", "60", "costs"]
    (excluded,) = [line for line in lines if line.startswith("  x d0")]
    assert excluded.split()[2:] == ["125.00", "125.00", "0", "9", "-1", "draining;", "full"]
    assert "5 more workers are not told of" in text
    assert "ended: lost" in text
    assert "not sent, 500.0 ms after it came: no decode worker" in text


def test_long_tables_are_cut() -> None:
    decision = DECISIONS.decisions[0]
    many = replace(decision, candidates=decision.candidates[:1] * 5)
    cut = decision_lines(replace(DECISIONS, decisions=(many,)), 2)
    assert sum("p0" in line for line in cut) == 2
    assert "    and 3 more" in cut
