"""A pair whose one side asks for KV in a form that the other cannot send is refused at joining."""

from __future__ import annotations

from pdserve.errors import IncompatibleWorker
from pdserve.types import Role
from support.router_bench import RouterBench


async def test_a_decode_worker_that_asks_for_what_a_prefill_worker_cannot_send_is_refused() -> None:
    async with RouterBench() as bench:
        await bench.join("P1", Role.PREFILL, kv_codings=("int8",))
        await bench.join("D1", Role.DECODE, kv_codings=("int8",))
        worker = await bench.connect("D2", Role.DECODE, kv_codings=("fp8",))
        assert isinstance(worker.refused, IncompatibleWorker)
        assert "D2 asks for fp8, prefill worker P1 sends exact, int8" in str(worker.refused)
        worker = await bench.connect("P2", Role.PREFILL)
        assert "D1 asks for int8, prefill worker P2 sends exact" in str(worker.refused)
        assert [entry.worker_id for entry in bench.router.status().workers] == ["P1", "D1"]
