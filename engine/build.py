"""From options to a running engine: prepare the model, build the step runner.

The one place that knows both the fake engine and the real one. The real one is imported only when
asked for: with ``engine = fake`` no torch is loaded. Not covered: several models in one process.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.fake_runner import FakeRunner
from engine.step import StepRunner
from pdserve.clock import Clock
from pdserve.errors import ConfigError
from pdserve.prepared import PreparedModel
from pdserve.types import KVLayout

FAKE_KV_MEMORY_MIB = 64.0  # when the option is 0: half a million tokens


def prepare(config: EngineConfig, progress: Callable[[str], None] | None = None) -> PreparedModel:
    """The prepared folder of the model asked for; seconds on first use, quick afterwards.

    Raises:
        ConfigError: options contradict each other; names them.
        ModelFileError: the model's files are missing or unusable.
    """
    check_engine_config(config)
    if config.engine == "fake":
        return prepare_fake_model(dtype=config.dtype)
    from engine.modelfiles.prepare import prepare_model

    return prepare_model(config.model, config.dtype, weights=config.weights, progress=progress)


def build_runner(config: EngineConfig, prepared: PreparedModel, clock: Clock) -> StepRunner:
    """A runner with its KV memory.

    Raises:
        ConfigError: options contradict each other, the model or the device; names them.
    """
    check_engine_config(config)
    max_model_len(config, prepared)
    if config.engine == "fake":
        return _build_fake_runner(config, prepared, clock)
    from engine.model_runner import build_model_runner

    return build_model_runner(config, prepared)


def check_engine_config(config: EngineConfig) -> None:
    """Raises ConfigError if chunks do not end at block boundaries."""
    if config.chunk_tokens % config.block_size:
        raise ConfigError(
            f"chunk_tokens must be a multiple of block_size ({config.block_size} tokens), "
            f"not {config.chunk_tokens}"
        ).advise("change --chunk-tokens or --block-size")


def max_model_len(config: EngineConfig, prepared: PreparedModel) -> int:
    """Longest context served, tokens.

    Raises:
        ConfigError: more is asked for than the model was made for.
    """
    own = prepared.config.max_positions
    if config.max_model_len > own:
        raise ConfigError(
            f"max_model_len must be at most {own} tokens (the model's context), "
            f"not {config.max_model_len}"
        )
    return config.max_model_len or own


def _build_fake_runner(config: EngineConfig, prepared: PreparedModel, clock: Clock) -> FakeRunner:
    shape = prepared.config
    layout = KVLayout(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, config.dtype
    )
    memory_bytes = (config.kv_memory_mib or FAKE_KV_MEMORY_MIB) * 2**20
    num_blocks = int(memory_bytes // layout.block_bytes)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_memory_mib: {config.kv_memory_mib:g} MiB hold no block of {layout.block_bytes} "
            "bytes"
        ).advise("raise --kv-memory-mib or lower --block-size")
    return FakeRunner(
        prepared,
        block_size=config.block_size,
        num_blocks=num_blocks,
        clock=clock,
        dtype=config.dtype,
        prefill_us_per_token=config.fake_prefill_us,
        decode_step_ms=config.fake_decode_ms,
    )
