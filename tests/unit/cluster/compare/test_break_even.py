"""The arithmetic of the advice, on round figures, and equal resources."""

from __future__ import annotations

import math

import pytest

from cluster.compare.break_even import Observed, advice_lines, stalling_prompt_tokens, stalling_rate
from cluster.compare.measures import Slo
from cluster.compare.resources import COLOCATED, COLOCATED_ONE, DISAGGREGATED, equal_setups
from cluster.plan import ServicePlan, read_plan, service_parser
from cluster.spec import Host
from pdserve.errors import ConfigError

COLOCATED_SEEN = Observed("colocated", 1000.0, 0.02, 0.3, 0.0, 0.5)
APART = Observed(DISAGGREGATED, 500.0, 0.02, 0.025, 0.004, 1.0)


def test_prompts_that_break_the_gap() -> None:
    # (100 - 20) ms at 1,000 tokens/s
    assert stalling_prompt_tokens(COLOCATED_SEEN, Slo(2.0, 0.1), 256) == pytest.approx(80)
    assert stalling_prompt_tokens(COLOCATED_SEEN, Slo(2.0, 0.01), 256) == 0
    assert math.isinf(stalling_prompt_tokens(COLOCATED_SEEN, Slo(2.0, 0.276), 256))


def test_the_rate_at_which_one_gap_in_a_hundred_holds_a_chunk() -> None:
    rate = stalling_rate(COLOCATED_SEEN, 512, 256)
    chunks_per_s = rate * 2
    others_per_s = (1 - chunks_per_s * 0.256) / 0.02
    assert chunks_per_s / (chunks_per_s + others_per_s) == pytest.approx(0.01)
    assert stalling_rate(COLOCATED_SEEN, 100, 256) > rate


def test_advice_shows_its_figures() -> None:
    text = "\n".join(advice_lines(APART, COLOCATED_SEEN, Slo(2.0, 0.1), 500, 256))
    assert "256 / 1,000 = 256 ms" in text
    assert "= 80 tokens a colocated stream's gap breaks 100 ms" in text
    assert "TTFT of an idle service 1,000 ms instead of 500 ms; second token 4 ms later" in text
    assert "2 s x 500/s = 1,000 tokens in time, and is full at 1 requests/s" in text
    assert "disaggregated is better by 2.00 times" in text
    slow = "\n".join(advice_lines(COLOCATED_SEEN, APART, Slo(2.0, 10.0), 500, 256))
    assert "none breaks a gap of 10000 ms" in slow
    assert "colocated is better by 2.00 times" in slow


def plan_of(*flags: str) -> ServicePlan:
    return read_plan(service_parser("test", "").parse(["--engine=fake", *flags]))


def setups(*flags: str, cores: int = 4, cuda: int = 0) -> dict[str, tuple[str, ...]]:
    plan = plan_of(*flags)
    return equal_setups(plan, plan.cluster_spec(Host(tuple(range(cores)), cuda)))


def test_threads_are_equal() -> None:
    found = setups("--prefill-workers=1", "--decode-workers=1")
    assert found == {
        DISAGGREGATED: ("--prefill-threads=2", "--decode-threads=2"),
        COLOCATED: ("--mode=colocated", "--decode-workers=2", "--decode-threads=2"),
        COLOCATED_ONE: ("--mode=colocated", "--decode-workers=1", "--decode-threads=4"),
    }
    unlike = setups("--prefill-threads=3", "--decode-threads=1")
    assert unlike[COLOCATED][2] == "--decode-threads=2"
    with pytest.raises(ConfigError, match="3 threads cannot be divided evenly among 2"):
        setups("--prefill-threads=2", "--decode-threads=1")


def test_devices_are_equal() -> None:
    found = setups("--device=cuda", "--prefill-workers=2", cuda=3)
    assert found[COLOCATED] == ("--mode=colocated", "--decode-workers=3")
    assert list(found) == [DISAGGREGATED, COLOCATED]


@pytest.mark.parametrize("flag", ["--mode=colocated", "--launcher=inproc"])
def test_what_compare_decides_is_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match="leave"):
        setups(flag)
