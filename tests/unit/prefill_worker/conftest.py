"""The bench of every test here; at its end nothing may be left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.fake_model import prepare_fake_model
from pdserve.messages import (
    Admitted,
    Ended,
)
from pdserve.prepared import PreparedModel
from support.prefill_bench import NUM_BLOCKS, Bench


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    folder: Path = tmp_path_factory.mktemp("models")
    return prepare_fake_model(folder)


@pytest.fixture
def open_timeout_s() -> float:
    return 20.0


@pytest.fixture
async def bench(prepared: PreparedModel, open_timeout_s: float) -> AsyncIterator[Bench]:
    num_tasks = len(asyncio.all_tasks())
    bench = Bench(prepared, open_timeout_s)
    yield bench
    bench.runner.gate.set()
    await bench.worker.close()
    await bench.worker.drained()
    await asyncio.sleep(0)
    assert bench.pool.num_free == NUM_BLOCKS
    assert len(bench.sink.of(Admitted)) == len(bench.sink.of(Ended))
    assert len(asyncio.all_tasks()) == num_tasks
    for export in bench.exporter.exports.values():
        assert export.lease.num_blocks == 0
