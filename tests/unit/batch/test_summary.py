"""What a batch comes to, and how far it is."""

from __future__ import annotations

import io

from cluster.batch.lines import LineResult
from cluster.batch.progress import Progress, progress_text
from cluster.batch.sending import LineEnd, Measured
from cluster.batch.summary import Tally, summary_facts, summary_lines
from pdserve.clock import ManualClock
from pdserve.errors import InvalidRequest, PeerUnreachable


def answered(number: int, ttft_s: float, total_s: float, num_tokens: int) -> LineEnd:
    ledger = {"ttft_s": ttft_s, "total_s": total_s, "num_generated_tokens": num_tokens}
    result = LineResult(number, str(number), 200, "", {})
    return LineEnd(result, Measured(10, num_tokens, ledger), 1)


def filled() -> Tally:
    """Ten lines: two done before, four answered now, three failed, one left."""
    tally = Tally(10, 2)
    for number, ttft_s in enumerate((0.1, 0.2, 0.3, 0.4)):
        tally.add(answered(number, ttft_s, ttft_s + 0.9, 10))
    tally.add(LineEnd(LineResult.of_error(7, "7", PeerUnreachable("gone")), Measured(), 6))
    tally.add(LineEnd(LineResult(8, "8", 400, "", {"error": {"code": "x"}}), Measured(), 1))
    tally.add(LineEnd(LineResult.of_error(9, None, InvalidRequest("a", "b")), Measured(), 0))
    return tally


def test_the_summary_counts_each_line_once() -> None:
    facts = summary_facts(filled(), 4.0)
    assert (facts["num_answered"], facts["num_failed"], facts["num_left"]) == (4, 3, 1)
    assert facts["failures"] == {"peer_unreachable": 1, "x": 1, "invalid_request": 1}
    assert facts["num_retries"] == 5
    assert facts["requests_per_s"] == 1.0
    assert (facts["num_prompt_tokens"], facts["num_generated_tokens"]) == (40, 40)
    assert facts["generated_tokens_per_s"] == 10.0
    assert facts["ttft_s"] == {"p50": 0.25, "p90": 0.37, "p99": 0.397, "max": 0.4}
    itl = facts["itl_s"]
    assert isinstance(itl, dict)
    assert {round(value, 6) for value in itl.values()} == {0.1}


def test_the_summary_in_words() -> None:
    text = "\n".join(summary_lines(filled(), 4.0))
    assert "9 of 10 lines have a result, 2 of them from before" in text
    assert (
        "4 answered, 3 failed (peer_unreachable 1, x 1, invalid_request 1), 5 tries again" in text
    )
    assert "1.00 requests/s; 40 prompt tokens, 10/s; 40 generated, 10/s" in text
    assert "TTFT ms: p50 250.0, p90 370.0, p99 397.0, max 400.0" in text
    assert "ITL ms: p50 100.0" in text
    assert "1 failed through the service" in text


def test_an_answer_of_one_token_has_no_gap_and_a_foreign_one_no_ledger() -> None:
    tally = Tally(2, 0)
    tally.add(answered(1, 0.5, 0.5, 1))
    tally.add(LineEnd(LineResult(2, "2", 200, "", {}), Measured(3, 4), 1))
    assert list(tally.ttfts_s) == [0.5]
    assert list(tally.itls_s) == []
    assert "ITL" not in "\n".join(summary_lines(tally, 1.0))
    assert summary_facts(tally, 1.0)["itl_s"] == {}


def test_nothing_done_divides_by_nothing() -> None:
    assert summary_facts(Tally(3, 3), 0.0)["requests_per_s"] == 0.0
    assert summary_lines(Tally(3, 3), 0.0)[0] == "3 of 3 lines have a result, 3 of them from before"
    assert progress_text(Tally(3, 0), 0.0) == f"[{'.' * 24}] 0/3 0 %"


def test_the_bar_says_how_much_is_left() -> None:
    text = progress_text(filled(), 70.0)
    assert text.startswith(f"[{'#' * 21}...] 9/10 90 %, 3 failed, 0.1 requests/s, 1 tokens/s")
    assert text.endswith("0:10 left")
    whole = Tally(10_000, 0)
    whole.add(answered(1, 1, 2, 3))
    assert progress_text(whole, 3.0).endswith("8:19:57 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    clock, out = ManualClock(), io.StringIO()
    progress = Progress(filled(), out, clock, pause_s=10)
    for _ in range(30):
        clock.advance(1.0)
        progress.advanced()
    progress.clear()
    progress.finish()
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("[#") for line in lines)


def test_on_a_terminal_the_bar_is_drawn_over_itself() -> None:
    clock, out = ManualClock(), Terminal()
    progress = Progress(filled(), out, clock, pause_s=10)
    clock.advance(1.0)
    progress.advanced()
    progress.advanced()
    progress.clear()
    out.write("a line of a worker\n")
    clock.advance(1.0)
    progress.advanced()
    progress.finish()
    assert out.getvalue().count("[#") == 3
    assert out.getvalue().count("\n") == 2
    assert "\r\x1b[Ka line of a worker\n\r\x1b[K[#" in out.getvalue()
