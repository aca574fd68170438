"""What people and probes are told: who serves, what is missing, what is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdserve.errors import Overloaded
from pdserve.types import FinishReason, Leg, PrefillTiming, Role, WorkerId, WorkerStatus
from router.cluster_view import ClusterStatus, WorkerEntry
from router.config import RouterConfig
from support.router_bench import RouterBench
from support.scripted_worker import LIMITS, settle

P, D = Role.PREFILL, Role.DECODE


def entry(role: Role, *, draining: bool = False) -> WorkerEntry:
    return WorkerEntry(
        WorkerId("w"), "a", role, "none", "inproc", LIMITS, WorkerStatus(), (),
        num_legs=0, draining=draining,
    )  # fmt: skip


def status(
    *workers: WorkerEntry, needs: tuple[Role, ...] = (P, D), stops: bool = False
) -> ClusterStatus:
    return ClusterStatus(
        "", "m", workers, queue_len=0, num_in_flight=0, num_tickets=0, draining=stops,
        needed_roles=needs,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (status(entry(P), entry(D)), ""),
        (status(entry(P), entry(P), entry(D)), ""),
        (status(), "no prefill and no decode worker"),
        (status(entry(P)), "no decode worker"),
        (status(entry(D)), "no prefill worker"),
        (status(entry(P), entry(D, draining=True)), "no decode worker"),
        (status(entry(P, draining=True), entry(P), entry(D)), ""),
        (status(entry(P), entry(D), stops=True), "the router is shutting down"),
        (status(stops=True), "the router is shutting down"),
        (status(entry(D), needs=(D,)), ""),
        (status(entry(P), needs=(D,)), "no decode worker"),
        (status(entry(P, draining=True), entry(D), needs=(D,)), ""),
        (status(entry(D, draining=True), needs=(D,)), "no decode worker"),
    ],
)
def test_whether_it_can_serve_and_why_not(seen: ClusterStatus, problem: str) -> None:
    assert seen.problem() == problem
    assert seen.can_serve() is (problem == "")


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, (P, D)),
        ({"prefill_place": "adaptive"}, (P, D)),
        ({"prefill_place": "adaptive", "without_prefill_worker": "local"}, (D,)),
        ({"without_prefill_worker": "local"}, (D,)),
        ({"prefill_place": "always-local"}, (D,)),
        ({"mode": "colocated"}, (D,)),
        ({"mode": "colocated", "prefill_place": "adaptive"}, (D,)),
    ],
)
def test_which_workers_a_service_needs(options: dict[str, str], needed: tuple[Role, ...]) -> None:
    config = RouterConfig(**options)  # type: ignore[arg-type]
    assert config.needed_roles == needed


async def test_a_service_that_never_asks_prefill_workers_goes_by_decode_workers_alone() -> None:
    limits = {"P1": replace(LIMITS, max_model_len=20), "D1": replace(LIMITS, max_model_len=60)}
    for place, longest in (("always-local", 60), ("always-remote", 20), ("adaptive", 20)):
        async with RouterBench(prefill_place=place) as bench:
            await bench.join("P1", P, limits=limits["P1"])
            await bench.join("D1", D, limits=limits["D1"])
            assert bench.router.model.max_model_len == longest


async def test_a_fallback_to_decode_workers_goes_by_prefill_workers_while_there_are_any() -> None:
    async with RouterBench(without_prefill_worker="local") as bench:
        await bench.join("D1", D, limits=replace(LIMITS, max_model_len=60))
        assert (bench.router.status().problem(), bench.router.model.max_model_len) == ("", 60)
        prefill = await bench.join("P1", P, limits=replace(LIMITS, max_model_len=20))
        assert (bench.router.status().problem(), bench.router.model.max_model_len) == ("", 20)
        await prefill.die()
        assert (bench.router.status().problem(), bench.router.model.max_model_len) == ("", 60)


@pytest.mark.parametrize(
    "options", [{"prefill_place": "always-local"}, {"without_prefill_worker": "local"}]
)
async def test_the_wait_is_that_of_the_workers_that_compute(options: dict[str, str]) -> None:
    """A prompt ahead at the decode worker counts, where it is computed there."""
    async with RouterBench(**options) as bench:
        worker = await bench.join("D1", D)
        first = bench.start(max_tokens=2)
        submit = await worker.take_submit(Leg.COLOCATED)
        await worker.admit(submit)
        await worker.first_token(submit, 10, timing=PrefillTiming(compute_s=1.0))  # of 5 tokens
        await worker.report(queued_tokens=60)
        with pytest.raises(Overloaded):
            bench.start(max_tokens=2, timeout_s=5.0)
        first.stream.cancel("enough")


def test_draining_workers_are_there_but_do_not_serve() -> None:
    seen = status(entry(P), entry(D), entry(D, draining=True))
    assert (seen.num_serving(P), seen.num_serving(D), len(seen.workers)) == (1, 1, 3)


def counts(bench: RouterBench) -> tuple[int, int, int, list[int]]:
    """(in flight, in the queue, tickets, legs of each worker)."""
    seen = bench.router.status()
    legs = [worker.num_legs for worker in seen.workers]
    return seen.num_in_flight, seen.queue_len, seen.num_tickets, legs


async def test_counts_follow_a_request_from_the_queue_to_its_end() -> None:
    async with RouterBench() as bench:
        reader = bench.start(max_tokens=3)
        await settle()
        assert counts(bench) == (1, 1, 0, [])
        prefill, decode = await bench.join_pair()
        to_prefill, to_decode = await bench.dispatched(prefill, decode)
        assert counts(bench) == (1, 0, 1, [1, 1])
        await prefill.first_token(to_prefill, 10)
        assert counts(bench) == (1, 0, 1, [1, 1])
        await decode.commit(to_decode)
        assert counts(bench) == (1, 0, 0, [1, 1])
        await prefill.end(to_prefill)
        assert counts(bench) == (1, 0, 0, [0, 1])
        await decode.tokens(to_decode, 1, [11, 12], FinishReason.LENGTH)
        assert counts(bench) == (0, 0, 0, [0, 1]), "the leg's blocks are not back yet"
        await decode.end(to_decode)
        assert counts(bench) == (0, 0, 0, [0, 0])
        assert reader.token_ids == [10, 11, 12]


async def test_kv_held_for_a_reader_to_come_is_a_ticket_and_its_request_queued() -> None:
    async with RouterBench() as bench:
        prefill, decode = await bench.join_pair()
        reader = bench.start()
        await bench.dispatched(prefill, decode)
        await decode.die()
        assert counts(bench) == (1, 1, 1, [1])
        reader.stream.cancel("enough")
        await settle()
        assert counts(bench) == (0, 0, 0, [1])


async def test_a_worker_row_is_what_it_said_of_itself() -> None:
    async with RouterBench(mode="colocated") as bench:
        worker = await bench.join("D1", Role.DECODE, device="cpu x 2", incarnation="b7")
        await worker.report(step=5, free_blocks=9)
        seen = bench.router.status()
        assert (seen.mode, seen.model, seen.draining) == ("colocated", "test", False)
        (row,) = seen.workers
        assert row == WorkerEntry(
            WorkerId("D1"), "b7", D, "cpu x 2", "inproc", LIMITS,
            WorkerStatus(step=5, total_blocks=64, free_blocks=9), (), num_legs=0, draining=False,
        )  # fmt: skip
