"""A worker that reports no more gets nothing new, and again once it reports."""

from __future__ import annotations

from pdserve.types import Role, WorkerId
from router.silence import Silence
from support.router_bench import RouterBench


def test_silent_after_two_looks() -> None:
    silence = Silence(10.0)
    assert silence.look(12.9, 1.0) == 13.0
    assert silence.look(13.0, 1.0) == 13.5
    assert not silence.is_silent
    assert silence.look(13.5, 1.0) == 14.5
    assert silence.is_silent
    silence.heard(14.0)
    assert not silence.is_silent
    assert silence.look(14.5, 1.0) == 17.0


def test_what_came_while_the_router_was_busy_is_read_between_the_looks() -> None:
    """Its loop stood still for a minute: the first look comes late, the report after it."""
    silence = Silence(0.0)
    assert silence.look(60.0, 1.0) == 60.5
    silence.heard(60.1)
    silence.look(60.5, 1.0)
    assert not silence.is_silent


def silent(bench: RouterBench) -> list[WorkerId]:
    return [worker.worker_id for worker in bench.router.status().workers if worker.silent]


async def test_a_silent_worker_is_told_and_taken_again() -> None:
    async with RouterBench(worker_loss_s=10.0, heartbeat_s=1.0) as bench:
        stopped = await bench.join("D1", Role.DECODE)
        alive = await bench.join("D2", Role.DECODE)
        for _ in range(4):
            await bench.advance(1.0)
            await alive.report()
        assert silent(bench) == ["D1"]
        await stopped.report()
        assert silent(bench) == []
        for _ in range(5):  # and found again, as soon
            await bench.advance(1.0)
            await alive.report()
        assert silent(bench) == ["D1"]
