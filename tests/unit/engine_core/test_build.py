"""Options of an engine that contradict each other are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.build import build_runner, check_engine_config, max_model_len
from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from pdserve.clock import ManualClock
from pdserve.errors import ConfigError

FAKE = EngineConfig(engine="fake")


def test_chunks_must_end_at_blocks() -> None:
    with pytest.raises(ConfigError, match="chunk_tokens must be a multiple of block_size"):
        check_engine_config(EngineConfig(block_size=16, chunk_tokens=40))


def test_fake_blocks_come_from_the_memory_asked_for(tmp_path: Path) -> None:
    prepared = prepare_fake_model(tmp_path)
    config = EngineConfig(engine="fake", block_size=8, kv_memory_mib=1.0, chunk_tokens=16)
    runner = build_runner(config, prepared, ManualClock())
    assert runner.layout.block_size == 8
    assert runner.buffers.num_blocks * runner.layout.block_bytes == 2**20
    assert build_runner(FAKE, prepared, ManualClock()).buffers.num_blocks > 10_000
    with pytest.raises(ConfigError, match="kv_memory_mib"):
        tiny = EngineConfig(engine="fake", kv_memory_mib=0.0001)
        build_runner(tiny, prepared, ManualClock())


def test_context_is_the_models_own_unless_shortened(tmp_path: Path) -> None:
    prepared = prepare_fake_model(tmp_path)
    assert max_model_len(FAKE, prepared) == 8192
    assert max_model_len(EngineConfig(max_model_len=100), prepared) == 100
    with pytest.raises(ConfigError, match="max_model_len must be at most 8192"):
        max_model_len(EngineConfig(max_model_len=8193), prepared)
