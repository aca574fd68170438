"""The routing decisions of a request as tables in lines of text, times in predicted milliseconds.

    attempt 1, 0.4 ms after it came: prefill remote (prefill_place always-remote)
      512 tokens of context, 640 with the answer at most, 560 expected; 4 workers

        prefill      ms  queue  compute  exposed  cached  ahead  free blocks
      * prefill-0  0.56   0.00     0.53     0.03      80      0        32768  the only one with room

Of the workers of each task the chosen one is marked and comes first, those that were excluded come
last. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdserve.explained import Candidate, RequestDecisions, RouteDecision

_PART_WORDS = {"held_up": "held up"}


def decision_lines(found: RequestDecisions, max_candidates: int) -> list[str]:
    """``max_candidates``: of each task."""
    salt = (
        ", with a cache salt: prefixes of that salt alone count as cached" if found.salted else ""
    )
    lines = [f"{found.request_id}: route policy {found.policy}{salt}"]
    for decision in found.decisions:
        lines += ["", *_decision(decision, max_candidates)]
    return lines


def _decision(decision: RouteDecision, max_candidates: int) -> list[str]:
    when = f"{decision.at_s * 1e3:.1f} ms after it came"
    if decision.attempt:
        reason = f" ({decision.place_reason})" if decision.place_reason else ""
        lines = [f"attempt {decision.attempt}, {when}: prefill {decision.prefill_place}{reason}"]
    else:
        lines = [f"not sent, {when}: {decision.waits}"]
    lines.append(
        f"  {decision.num_context_tokens} tokens of context; with the answer"
        f" {decision.expected_tokens} expected, {decision.max_tokens} at most;"
        f" {decision.num_workers} workers"
    )
    for task in dict.fromkeys(each.task for each in decision.candidates):
        of_task = [each for each in decision.candidates if each.task == task]
        lines += ["", *_table(task, of_task[:max_candidates])]
        if len(of_task) > max_candidates:
            lines.append(f"    and {len(of_task) - max_candidates} more")
    if decision.num_left_out:
        lines.append(f"  {decision.num_left_out} more workers are not told of")
    if decision.ended:
        lines += ["", f"  ended: {decision.ended}"]
    return lines


def _table(task: str, candidates: Sequence[Candidate]) -> list[str]:
    parts = [_PART_WORDS.get(part.name, part.name) for part in candidates[0].parts]
    load = "batch" if task == "decode" else "ahead"
    rows = [(task, "ms", *parts, "cached", load, "free blocks")]
    for each in candidates:
        costs = (each.cost_s, *(part.cost_s for part in each.parts))
        is_load = each.num_legs if task == "decode" else each.tokens_ahead
        numbers = (each.cached_tokens, is_load, each.free_blocks)
        rows.append(
            (each.worker_id, *(f"{cost_s * 1e3:.2f}" for cost_s in costs), *map(str, numbers))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["    " + _aligned(rows[0], widths)]
    for each, row in zip(candidates, rows[1:], strict=True):
        mark = "*" if each.chosen else "x" if each.excluded else " "
        notes = "; ".join(filter(None, (each.why, *each.remarks, *each.excluded)))
        lines.append(f"  {mark} {_aligned(row, widths)}  {notes}".rstrip())
    return lines


def _aligned(row: Iterable[str], widths: Sequence[int]) -> str:
    (name, width), *numbers = zip(row, widths, strict=True)
    return "  ".join([name.ljust(width), *(text.rjust(size) for text, size in numbers)])
