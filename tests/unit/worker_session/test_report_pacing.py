"""When reports leave: at once while they are rare, spaced out when they are not."""

from __future__ import annotations

import pytest

from pdserve.messages import Admitted, Committed, Ended, Tokens, WorkerEvent
from pdserve.report_pacing import BURST, ReportPacing, may_wait
from pdserve.types import (
    DecodeTiming,
    FinishReason,
    KvTiming,
    Leg,
    RequestId,
    TicketId,
    TokenEvent,
)

REQUEST = RequestId("r1")


def _tokens(finish: FinishReason | None = None, timing: DecodeTiming | None = None) -> Tokens:
    return Tokens((TokenEvent(REQUEST, 1, 3, 7, finish),), timing)


@pytest.mark.parametrize(
    ("event", "waits"),
    [
        (_tokens(), True),
        (Admitted(REQUEST, 1, Leg.DECODE), True),
        (Ended(REQUEST, 1, Leg.DECODE), True),
        (_tokens(FinishReason.STOP), False),
        (_tokens(timing=DecodeTiming()), False),
        (Committed(REQUEST, TicketId("t"), 1, KvTiming()), False),
    ],
)
def test_what_somebody_waits_for_is_urgent(event: WorkerEvent, waits: bool) -> None:
    assert may_wait(event) is waits


def test_rare_reports_never_wait() -> None:
    pacing = ReportPacing(0.005)
    for step in range(100):
        now_s = step * 0.0051
        assert pacing.wait_s(now_s, urgent=False) <= 0
        pacing.left(now_s)


def test_what_may_wait_does_so_for_one_interval() -> None:
    pacing = ReportPacing(0.005)
    pacing.left(1.0)
    assert pacing.wait_s(1.002, urgent=False) == pytest.approx(0.003)
    assert pacing.wait_s(1.002, urgent=True) <= 0


def test_urgent_reports_leave_at_once_until_the_burst_is_used_up() -> None:
    pacing = ReportPacing(0.005)
    for _ in range(int(BURST)):
        assert pacing.wait_s(1.0, urgent=True) <= 0
        pacing.left(1.0)
    assert pacing.wait_s(1.0, urgent=True) == pytest.approx(0.005)
    assert pacing.wait_s(1.002, urgent=True) == pytest.approx(0.003)
    assert pacing.wait_s(1.0051, urgent=True) <= 0


def test_in_the_long_run_there_is_one_report_an_interval() -> None:
    pacing, now_s = ReportPacing(0.005), 0.0
    for _ in range(1000):
        now_s += max(0.0, pacing.wait_s(now_s, urgent=True))
        pacing.left(now_s)
    assert now_s == pytest.approx((1000 - BURST) * 0.005)


def test_no_interval_no_wait() -> None:
    pacing = ReportPacing(0.0)
    for _ in range(100):
        assert pacing.wait_s(1.0, urgent=False) == 0
        pacing.left(1.0)
