"""Decode workers meet prefill workers (docs/protocol.md section 1), and what they tell is kept."""

from __future__ import annotations

import pytest

from pdserve.messages import Met, Peer
from pdserve.public import KvPairView
from pdserve.types import Role, WorkerId
from support.router_bench import RouterBench
from support.scripted_worker import settle


async def test_decode_workers_meet_prefill_workers_whoever_comes_first() -> None:
    async with RouterBench() as bench:
        first = await bench.join("D1", Role.DECODE)
        assert first.met == []
        prefill = await bench.join("P1", Role.PREFILL)
        second = await bench.join("D2", Role.DECODE)
        await settle()
        hello = prefill.hello
        peer = Peer(hello.worker_id, hello.incarnation, hello.endpoints, hello.layout)
        assert first.met == second.met == [peer]
        assert prefill.met == []
        await bench.join("P2", Role.PREFILL)
        await settle()
        assert [[each.worker_id for each in d.met] for d in (first, second)] == [["P1", "P2"]] * 2


async def test_a_pair_that_cannot_meet_is_told_and_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with RouterBench() as bench:
        prefill, near = await bench.join_pair()
        far = await bench.join("D2", Role.DECODE)
        await settle()
        (peer,) = far.met
        await near.report(Met(peer.worker_id, peer.incarnation, "grpc"), free_blocks=30)
        await far.report(Met(peer.worker_id, "an earlier run", "", "no route"))
        assert "unreachable" not in caplog.text
        await far.report(Met(peer.worker_id, peer.incarnation, "", "no route"))
        assert "kv_endpoint_unreachable prefill=P1 decode=D2" in caplog.text
        assert "--advertise" in caplog.text
        reader = bench.start()  # D2 has more room, D1 can be reached
        submits = await bench.dispatched(prefill, near)
        assert submits
        assert bench.router.status().kv_pairs == (
            KvPairView(WorkerId("P1"), WorkerId("D1"), "grpc"),
        )
        reader.stream.cancel("enough")
        await near.report(Met(peer.worker_id, peer.incarnation, "grpc", "", 1.5e9, 8_400_000))
        (pair,) = bench.router.status().kv_pairs
        assert (pair.transport, pair.probe_bytes_per_s) == ("grpc", 1.5e9)
        assert pair.probe_bytes == 8_400_000
        assert "gb_per_s=1.50 mb=8.4" in caplog.text
