"""What is kept of routing decisions, and for how long; explanations of whole requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.router.test_costs import view

from pdserve.errors import NoWorkers, UnknownDecision
from pdserve.types import RequestId, Role, SamplingParams, WorkerId
from router.config import RouterConfig
from router.decision_log import Asker, Considered, DecisionLog, KeptDecision
from router.fleet import Fleet
from router.policy import NO_PAIRS, Demand, Placement
from support.trio import Trio, TrioOptions, collect

VIEWS = [view("P0"), view("D0")]
CHOICE = Placement(VIEWS[0].ref, VIEWS[1].ref)
CONSIDERED = Considered(CHOICE, Demand(100, 200), None, NO_PAIRS)
SAMPLING = SamplingParams(max_tokens=3, ignore_eos=True)


def keep(log: DecisionLog, request_id: str, arrival: int, attempt: int = 1) -> None:
    asker = Asker(RequestId(request_id), arrival, 0.0, salted=False)
    log.keep(KeptDecision(asker, attempt, 1.0, CONSIDERED, tuple(VIEWS)))


def names(log: DecisionLog, *wanted: str) -> list[str | None]:
    found = [log.find(name) for name in wanted]
    return [None if each is None else each.asker.request_id for each in found]


def test_the_latest_are_kept() -> None:
    log = DecisionLog(2)
    for arrival, request_id in enumerate(("a", "b", "c")):
        keep(log, request_id, arrival)
    assert names(log, "a", "b", "c", "last", "cmpl-b") == [None, "b", "c", "c", "b"]
    assert "'a' among the 2 latest" in str(log.unknown("a"))


def test_of_many_workers_fewer_are_kept() -> None:
    log = DecisionLog(100, max_views=5)
    for arrival, request_id in enumerate(("a", "b", "c")):
        keep(log, request_id, arrival)
    assert names(log, "a", "b", "c") == [None, "b", "c"]


def test_the_newest_is_kept_however_many_workers_there_are() -> None:
    log = DecisionLog(100, max_views=1)
    keep(log, "a", 1)
    keep(log, "b", 2)
    assert names(log, "a", "b") == [None, "b"]


def test_nothing_is_kept_of_nothing() -> None:
    log = DecisionLog(0)
    keep(log, "a", 1)
    log.failed(1, 1, "lost")
    assert (len(log), log.find("a")) == (0, None)


def test_attempts_of_one_request_and_a_request_of_the_same_id() -> None:
    log = DecisionLog(10)
    keep(log, "a", 1, attempt=1)
    keep(log, "other", 2)
    keep(log, "a", 1, attempt=2)
    log.failed(1, 1, "worker lost")
    log.failed(2, 1, "another's")
    found = log.find("a")
    assert found is not None
    assert [each.attempt for each in found.decisions] == [1, 2]
    assert found.endings == {1: "worker lost"}
    keep(log, "a", 3)
    found = log.find("a")
    assert found is not None
    assert ([each.attempt for each in found.decisions], found.endings) == ([1], {})


def test_what_was_kept_stays_as_it_was() -> None:
    log, fleet = DecisionLog(2), Fleet.of(VIEWS)
    asker = Asker(RequestId("a"), 1, 0.0, salted=False)
    log.keep(KeptDecision(asker, 1, 1.0, CONSIDERED, fleet.views))
    fleet.refresh([view("P0", queued_tokens=100), VIEWS[1]])
    fleet.refresh([VIEWS[1]])
    found = log.find("a")
    assert found is not None
    assert list(found.decisions[0].views) == VIEWS


async def test_each_attempt_of_a_request_that_was_tried_again() -> None:
    engine = replace(TrioOptions().engine, fake_decode_ms=5.0)
    async with Trio(TrioOptions(num_decode=2, engine=engine)) as trio:
        stream = trio.start([5] * 20, replace(SAMPLING, max_tokens=100), cache_salt="secret")
        while (await anext(stream)).index < 2:  # committed
            pass
        (decision,) = trio.router.explain("r1").decisions
        lost = next(
            each.worker_id for each in decision.candidates if each.chosen and each.task == "decode"
        )
        await trio.remove(lost)
        async for _ in stream:
            pass
        found = trio.router.explain("last")
    assert (found.request_id, found.policy, found.salted) == ("r1", "cost", True)
    assert "secret" not in repr(found)
    one, two = found.decisions
    assert (one.attempt, two.attempt) == (1, 2)
    assert f"worker {lost} lost" in one.ended
    assert two.ended == ""
    assert one.at_s <= two.at_s
    assert (one.num_workers, two.num_workers) == (3, 2)
    assert [each.worker_id for each in two.candidates if each.chosen] == [
        "p0",
        {"d0": "d1", "d1": "d0"}[lost],
    ]
    assert two.num_context_tokens > one.num_context_tokens == 20


async def test_a_request_that_waits_and_one_that_was_refused() -> None:
    config = RouterConfig(worker_patience_s=0.2)
    async with Trio(TrioOptions(num_prefill=0, router=config)) as trio:
        stream = trio.start([5] * 20, SAMPLING)
        (decision,) = trio.router.explain("r1").decisions
        assert (decision.attempt, decision.waits) == (0, "no prefill worker")
        assert [each.worker_id for each in decision.candidates] == ["d0"]
        with pytest.raises(NoWorkers):
            await collect(stream)
        (decision,) = trio.router.explain("r1").decisions
        assert (decision.attempt, decision.waits) == (0, "no prefill worker")
        assert decision.ended == "no prefill worker for 0.2 s"
        await trio.add(Role.PREFILL)
        await trio.generate([5] * 20, SAMPLING)
        chosen = [each for each in trio.router.explain("r2").decisions[0].candidates if each.chosen]
        assert [each.worker_id for each in chosen] == [WorkerId("p0"), WorkerId("d0")]
        with pytest.raises(UnknownDecision, match="'r9'"):
            trio.router.explain("r9")


async def test_the_prefix_that_counted_is_told() -> None:
    async with Trio(TrioOptions(num_prefill=2)) as trio:
        prompt = list(range(40))
        await trio.generate(prompt, SAMPLING)
        await trio.generate([*prompt, 7, 7], SAMPLING)
        await trio.generate([*prompt, 7, 7], SAMPLING, cache_salt="another")
        first, second, third = (trio.router.explain(f"r{number}") for number in (1, 2, 3))
    cached = [
        [max(each.cached_tokens for each in found.decisions[0].candidates if each.task == task)
         for found in (first, second, third)]
        for task in ("prefill", "decode")
    ]  # fmt: skip
    assert cached == [[0, 40, 0], [0, 40, 0]]
    assert (second.salted, third.salted) == (False, True)
