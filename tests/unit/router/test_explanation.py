"""What an explanation says, and that the ledger has it only when asked; sessions' homes."""

from __future__ import annotations

from dataclasses import replace

from unit.router.test_costs import view

from pdserve.route_hints import RouteHints
from pdserve.types import Request, RequestId, SamplingParams, WorkerId
from router.explanation import MAX_CANDIDATES, explain
from router.fleet import Fleet
from router.policy import Colocated, Demand, Placement, PolicyLimits, place
from router.session_homes import SessionHomes
from support.trio import Trio, TrioOptions


def test_every_term_of_every_candidate() -> None:
    views = [view("P0", queued_tokens=100), view("P1"), view("D0")]
    fleet, limits = Fleet.of(views), PolicyLimits()
    demand = Demand(100, 200, prefer=frozenset({WorkerId("P1")}))
    choice = place(demand, fleet, limits)
    assert isinstance(choice, Placement)
    lines = explain(demand, fleet, limits, None, choice).splitlines()
    assert lines[0] == "100 tokens, 3 workers, policy cost, prefill remote"
    assert lines[1].startswith("* prefill P1: 11.10 ms = queue 0.00 + compute 11.10 + exposed 0.00")
    assert lines[1].endswith("; its session's")
    assert lines[2].startswith("  prefill P0: 22.10 ms = queue 11.00 + compute 11.10")
    assert lines[3].startswith("* decode D0: 6.10 ms = step 6.10 + others 0.00 + transfer 0.00")


def test_many_candidates_are_cut() -> None:
    views = [view(f"D{number}") for number in range(50)]
    limits = PolicyLimits(colocated=True)
    choice = Colocated(views[30].ref)
    text = explain(Demand(100, 200), Fleet.of(views), limits, None, choice)
    assert len(text.splitlines()) == 1 + 2 * MAX_CANDIDATES
    assert "* prefill D30" in text


def test_homes() -> None:
    homes = SessionHomes(max_sessions=2)
    first, second = frozenset({WorkerId("a")}), frozenset({WorkerId("b")})
    homes.went("t", "one", first)
    homes.went("t", "", second)
    assert homes.of("t", "") == frozenset()
    assert (homes.of("t", "one"), homes.of("u", "one")) == (first, frozenset())
    homes.went("t", "two", second)
    homes.went("t", "one", second)
    homes.went("t", "three", first)
    assert (homes.of("t", "two"), homes.of("t", "one")) == (frozenset(), second)


async def test_a_session_stays_where_it_was_and_the_ledger_says_why() -> None:
    """Prompts that share nothing but their session."""
    sampling = SamplingParams(max_tokens=3, ignore_eos=True)
    async with Trio(TrioOptions(num_prefill=3, num_decode=3)) as trio:
        for session, explains in (("a", True), ("b", False), ("c", False)):
            homes = set()
            for number in range(4):
                ids = tuple((number * 7 + ord(session) * position) % 256 for position in range(9))
                request = Request(RequestId(f"{session}{number}"), ids, sampling)
                stream = trio.router.start(request, hints=RouteHints("", session, explains))
                assert len([token async for token in stream]) == 3
                timing = stream.timing
                homes.add((timing.prefill_worker, timing.decode_worker))
                assert (f"* prefill {timing.prefill_worker}" in timing.explanation) == explains
                assert (replace(timing, explanation="") == timing) == (not explains)
            assert len(homes) == 1
