"""What an explanation says, and that the ledger has it only when asked; sessions' homes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from unit.router.test_costs import view
from unit.router.test_few_workers import some_worker

from pdserve.explained import Candidate, RouteDecision
from pdserve.route_hints import RouteHints
from pdserve.types import Request, RequestId, SamplingParams, WorkerId
from router.decision_log import Asker, Considered, KeptDecision
from router.explanation import explained, explanation_text, workers_of
from router.fleet import Fleet
from router.local_prefill import LocalLimits, PrefillPlace
from router.policy import (
    NO_PAIRS,
    Colocated,
    Decision,
    Demand,
    Placement,
    PolicyLimits,
    RoutePolicy,
    Unplaced,
    place,
)
from router.session_homes import SessionHomes
from support.trio import Trio, TrioOptions

ASKER = Asker(RequestId("r"), 1, 2.0, salted=False)


def explain(
    demand: Demand, fleet: Fleet, limits: PolicyLimits, choice: Decision, **options: int
) -> RouteDecision:
    considered = Considered(choice, demand, None, NO_PAIRS)
    kept = KeptDecision(ASKER, 1, 2.5, considered, tuple(fleet.views))
    return explained(kept, limits, **options)


def test_every_term_of_every_candidate() -> None:
    views = [view("P0", queued_tokens=100), view("P1"), view("D0")]
    fleet, limits = Fleet.of(views), PolicyLimits()
    demand = Demand(100, 200, prefer=frozenset({WorkerId("P1")}))
    choice = place(demand, fleet, limits)
    assert isinstance(choice, Placement)
    decision = explain(demand, fleet, limits, choice)
    assert (decision.at_s, decision.waits, decision.prefill_place) == (0.5, "", "remote")
    lines = explanation_text(decision).splitlines()
    assert lines[0] == "100 tokens, 3 workers, prefill remote (prefill_place always-remote)"
    assert lines[1].startswith("* prefill P1: 11.10 ms = queue 0.00 + compute 11.10 + exposed 0.00")
    assert lines[1].endswith("blocks; its session's last worker")
    assert lines[2].startswith("  prefill P0: 22.10 ms = queue 11.00 + compute 11.10")
    assert lines[3].startswith("* decode D0: 6.10 ms = step 6.10 + others 0.00 + transfer 0.00")
    assert lines[3].endswith("; the only one with room")


def test_many_candidates_are_cut() -> None:
    views = [view(f"D{number}") for number in range(50)]
    limits = PolicyLimits(colocated=True)
    choice = Colocated(views[30].ref)
    decision = explain(Demand(100, 200), Fleet.of(views), limits, choice, max_candidates=8)
    assert [each.worker_id for each in decision.candidates if each.chosen] == ["D30"]
    assert (len(decision.candidates), decision.num_left_out) == (8, 42)


@pytest.mark.parametrize("place_by", list(PrefillPlace))
@pytest.mark.parametrize("policy", [RoutePolicy.COST, RoutePolicy.LEAST_LOADED])
def test_who_is_not_excluded_is_who_the_policy_chooses_from(
    place_by: PrefillPlace, policy: RoutePolicy
) -> None:
    """The words stand beside the rules; here they are held together."""
    limits = PolicyLimits(
        dispatch_window_s=0.04, policy=policy, local=LocalLimits(place_by, is_strict=False)
    )
    draw, kinds = random.Random(7), set()
    for _ in range(300):
        fleet = Fleet.of([some_worker(each, draw) for each in range(draw.randrange(1, 7))])
        num_tokens = draw.choice([1, 16, 300, 1000])
        demand = Demand(num_tokens, num_tokens + 100, needs_decode=draw.random() < 0.9)
        choice = place(demand, fleet, limits)
        decision = explain(demand, fleet, limits, choice)
        open_to: dict[str, list[Candidate]] = {}
        for each in decision.candidates:
            if not each.excluded:
                open_to.setdefault(each.task, []).append(each)
        kinds.add(type(choice))
        if isinstance(choice, Unplaced):
            asked = {each.task for each in decision.candidates}
            assert decision.waits == choice.reason.value
            assert asked - open_to.keys() or len(asked) < 2
            continue
        chosen = [each for each in decision.candidates if each.chosen]
        assert {each.worker_id for each in chosen} == {ref.worker_id for ref in workers_of(choice)}
        for each in chosen:
            assert each in open_to[each.task]
            assert each.why
            if policy is RoutePolicy.COST:
                assert each.cost_s <= min(other.cost_s for other in open_to[each.task]) + 1e-12
    assert Unplaced in kinds
    assert (Colocated in kinds) == (
        place_by is not PrefillPlace.REMOTE or not limits.local.is_strict
    )


def test_what_excluded_a_worker() -> None:
    full = view("P0", free_blocks=1)
    short = replace(view("P1"), limits=replace(full.limits, max_model_len=150))
    leaving, hung = replace(view("P2"), draining=True), view("P3", step_age_s=9)
    busy, behind = replace(view("P4"), blocked=True), view("P5", queued_tokens=500)
    crowded = view("D1", num_running=full.limits.max_running)
    silent = replace(view("P7"), silent=True)
    views = [full, short, leaving, hung, busy, behind, view("P6"), view("D0"), crowded, silent]
    fleet, limits, demand = Fleet.of(views), PolicyLimits(), Demand(100, 200)
    barred = {(WorkerId("P6"), WorkerId("D2"))}
    considered = Considered(place(demand, fleet, limits, barred), demand, None, frozenset(barred))
    kept = KeptDecision(ASKER, 1, 2.5, considered, (*views, view("D2")))
    why = {each.worker_id: each.excluded for each in explained(kept, limits).candidates}
    assert why["P0"] == ("full: 10 blocks needed, 1 free",)
    assert why["P1"] == ("context limit: 200 tokens with the answer, at most 150",)
    assert why["P2"] == ("draining",)
    assert why["P3"] == ("hung: in one step for 9.0 s",)
    assert why["P4"] == ("answered busy since its last report",)
    assert why["P5"][0].startswith("busy: 500 tokens ahead, ")
    assert why["P6"] == why["D0"] == ()
    assert why["P7"] == ("silent: no report for several heartbeats",)
    assert why["D1"] == (f"full: all {full.limits.max_running} places taken",)
    assert why["D2"] == ("barred: KV from P6 did not come through lately",)


def test_why_a_prompt_is_computed_where_it_is() -> None:
    fleet = Fleet.of([view("P0", queued_tokens=150), view("D0")])
    adaptive = PolicyLimits(local=LocalLimits(PrefillPlace.ADAPTIVE, max_tokens=64))

    def reason(num_tokens: int, limits: PolicyLimits) -> str:
        demand = Demand(num_tokens, num_tokens + 10)
        return explain(demand, fleet, limits, place(demand, fleet, limits)).place_reason

    assert reason(50, PolicyLimits()) == "prefill_place always-remote"
    assert reason(50, adaptive).startswith("adaptive: 6.0")  # of D0, with its queue cheaper
    assert reason(100, adaptive) == "adaptive: 100 tokens not cached at D0, local_prefill_tokens 64"
    local = PolicyLimits(local=LocalLimits(PrefillPlace.LOCAL))
    assert reason(50, local) == "prefill_place always-local"


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
