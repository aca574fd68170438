"""A service of actors under load: deaths, drains, other counts. Fake engine, real cluster.

Every stream must end with the tokens that the plain oracle gives, and nothing may be left.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from cluster.onray.actors import services
from cluster.ready import RouterReady, WorkerReady
from cluster.service import ServiceAddress
from pdserve.errors import ConfigError
from router.client import AsyncClient
from support.ray_cluster import RayCluster, wait_until
from support.ray_service import served_on_ray
from support.remote_service import Streams, assert_settled, oracle, prompt
from support.trio import eventually

pytestmark = pytest.mark.ray

PROMPTS = [prompt(number) for number in range(24)]
STEPS = ("--fake-decode-ms=10", "--fake-prefill-us=100")


async def test_any_actor_killed_under_load_loses_no_stream(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with (
        served_on_ray(cluster, tmp_path, *STEPS) as served,
        AsyncClient(served.grpc_target) as client,
    ):
        for victim in ("prefill-0", "decode-0"):
            before = await served.seat(victim)
            streams = Streams(client, PROMPTS, 60)
            await eventually(lambda s=streams: s.num_tokens_read >= 48, timeout_s=60)  # type: ignore[misc]
            os.kill(before.pid, signal.SIGKILL)
            await streams.assert_right()
            after = await served.seat_after(victim, before.launch)
            assert isinstance(before.report, WorkerReady)
            assert isinstance(after.report, WorkerReady)
            assert after.report.incarnation != before.report.incarnation
            await assert_settled(client, "prefill-0", "decode-0")


async def test_a_detached_service_outlives_its_driver_and_its_controller(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with (
        served_on_ray(cluster, tmp_path, *STEPS, "--detached") as served,
        AsyncClient(served.grpc_target) as client,
    ):
        assert await served.process.rest() == 0
        # Not the last line always: Ray forwards what its actors print until the driver is gone.
        said = "\n".join(served.process.lines)
        assert "'pdserve cluster stop --service tested' ends it" in said
        before = await served.scale({"decode": 2})
        own = await served.pid_of_controller()
        streams = Streams(client, PROMPTS, 60)
        await eventually(lambda: streams.num_tokens_read >= 24, timeout_s=60)
        os.kill(own, signal.SIGKILL)
        await streams.assert_right()
        await served.controller_after(own)
        after = await served.status()
        assert {seat.seat: seat.pid for seat in after.seats} == {
            seat.seat: seat.pid for seat in before.seats
        }
        await assert_settled(client, "prefill-0", "decode-0", "decode-1")
        stopped = await served.cluster_command(cluster, "stop")
        assert stopped.process.returncode == 0
        assert "tested stopped" in stopped.lines


async def test_scaling_and_draining_under_load_changes_no_stream(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with (
        served_on_ray(cluster, tmp_path, *STEPS, "--pairs") as served,
        AsyncClient(served.grpc_target) as client,
    ):
        streams = Streams(client, PROMPTS, 150)
        await eventually(lambda: streams.num_tokens_read >= 24, timeout_s=60)
        await served.scale({"prefill": 2, "decode": 3})
        more = Streams(client, PROMPTS, 60)
        await eventually(lambda: more.num_tokens_read >= 24, timeout_s=60)
        view = await served.drain("decode-0")
        assert [seat.seat for seat in view.seats if seat.seat.startswith("decode")] == [
            "decode-1", "decode-2",
        ]  # fmt: skip
        view = await served.scale({"prefill": 1, "decode": 1})
        assert {seat.seat for seat in view.seats} == {"router-0", "prefill-0", "decode-1"}
        await streams.assert_right()
        await more.assert_right()
        await assert_settled(client, "prefill-0", "decode-1")
        view = await served.scale({"decode": 2})
        assert "decode-0" in {seat.seat for seat in view.seats}
        for wrong in ("decode-7", "router-0"):
            with pytest.raises(ConfigError, match=wrong):
                await served.drain(wrong)


async def test_two_routers_share_the_workers_and_come_back_on_their_ports(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with served_on_ray(cluster, tmp_path, *STEPS) as served:
        view = await served.scale({"router": 2})
        targets = [address.grpc_target for address in view.addresses]
        async with AsyncClient(targets[0]) as one, AsyncClient(targets[1]) as other:
            await assert_settled(other, "prefill-0", "decode-0")
            streams = [Streams(one, PROMPTS[:12], 60), Streams(other, PROMPTS[12:], 60)]
            await asyncio.gather(*(each.assert_right() for each in streams))
            first = await served.seat("router-1")
            os.kill(first.pid, signal.SIGKILL)
            await Streams(one, PROMPTS, 20).assert_right()
            second = await served.seat_after("router-1", first.launch)
        assert isinstance(second.report, RouterReady)
        assert ServiceAddress.of(second.report).grpc_target == targets[1]
        async with AsyncClient(targets[1]) as again:
            await assert_settled(again, "prefill-0", "decode-0")
            await Streams(again, PROMPTS[:4], 20).assert_right()


async def test_a_worker_that_makes_no_progress_is_replaced(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with (
        served_on_ray(
            cluster, tmp_path, "--stall-s=1", "--worker-loss-s=1", "--fake-decode-ms=30000"
        ) as served,
        AsyncClient(served.grpc_target) as client,
    ):
        in_a_step = await served.seat("decode-0")
        reading = Streams(client, PROMPTS[:1], 2)
        # Its event loop turns and answers; only the age of its step tells.
        assert (await served.problem_of("decode-0")).startswith("no step for 1.")
        await served.seat_after("decode-0", in_a_step.launch)
        await reading.cancel()
        stopped = await served.seat("prefill-0")
        os.kill(stopped.pid, signal.SIGSTOP)
        await served.seat_after("prefill-0", stopped.launch)
        await asyncio.to_thread(wait_until, lambda: not psutil.pid_exists(stopped.pid))
        await Streams(client, PROMPTS[:4], 1).assert_right()


async def test_nothing_outlives_a_driver_that_is_killed(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with served_on_ray(cluster, tmp_path) as served:
        served.process.process.kill()
        await asyncio.to_thread(wait_until, lambda: "tested" not in services())
        asked = await served.cluster_command(cluster, "status")
        assert "no service 'tested' on this cluster; there is none" in "\n".join(asked.lines)


async def test_kv_through_the_object_store_when_that_is_wanted(
    cluster: RayCluster, tmp_path: Path
) -> None:
    async with (
        served_on_ray(cluster, tmp_path, "--kv-transports=ray") as served,
        AsyncClient(served.grpc_target) as client,
    ):
        stream = client.generate(
            prompt_ids=prompt(1), max_tokens=8, temperature=0.0, ignore_eos=True
        )
        found = [token_id async for delta in stream for token_id in delta.token_ids]
        assert found == oracle(prompt(1), 8)
        assert stream.timing is not None
        assert stream.timing.kv_transport == "ray"
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "prefill-0", "decode-0")
        seat = await served.seat("prefill-0")
        assert isinstance(seat.report, WorkerReady)
        assert seat.report.transports == ("ray",)


async def test_what_cannot_be_placed_is_said(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as raised:
        async with served_on_ray(
            cluster, tmp_path, "--prefill-num-gpus=2", "--placement-timeout-s=1"
        ):
            pass
    assert "prefill-0 (0.2 CPU, 2 GPU) fits no node" in str(raised.value)
    assert "0 GPU free of 0 GPU" in str(raised.value)
    assert "tested" not in services()


async def test_a_worker_that_is_refused_ends_the_start(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as raised:
        async with served_on_ray(cluster, tmp_path, "--kv-in-flight=int8", "--start-timeout-s=60"):
            pass
    assert "cannot serve; no " in str(raised.value), "and not: after 60 s"
    assert "-0 was refused: kv_codings: decode worker decode-0 asks for int8" in str(raised.value)
    assert "tested" not in services()
