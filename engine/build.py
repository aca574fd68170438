"""From options to a running engine: prepare the model, build the step runner.

The one place that knows both the fake engine and the real one. The real one is imported only when
asked for: with ``engine = fake`` no torch is loaded. Not covered: several models in one process.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.config import EngineConfig
from engine.fake_model import prepare_fake_model
from engine.fake_runner import FakeRunner
from engine.simulated_runner import SimulatedRunner
from engine.step import StepRunner
from pdserve.clock import Clock
from pdserve.errors import ConfigError
from pdserve.prepared import PreparedModel
from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import KVLayout

FAKE_KV_MEMORY_MIB = 64.0  # when the option is 0: half a million tokens
SIMULATED_KV_MEMORY_MIB = 4096.0  # zeros that nobody wrote take no memory


def prepare(config: EngineConfig, progress: Callable[[str], None] | None = None) -> PreparedModel:
    """The prepared folder of the model asked for; seconds on first use, quick afterwards.

    Raises:
        ConfigError: options contradict each other; names them.
        ModelFileError: the model's files are missing or unusable.
    """
    check_engine_config(config)
    if config.engine != "model":
        return prepare_fake_model(dtype=config.dtype)
    from engine.modelfiles.prepare import prepare_model

    return prepare_model(config.model, config.dtype, weights=config.weights, progress=progress)


def build_runner(
    config: EngineConfig, prepared: PreparedModel, clock: Clock, *, nice: int = 0
) -> StepRunner:
    """A runner with its KV memory. ``nice``: of the threads of a real engine, 0 to 19.

    Raises:
        ConfigError: options contradict each other, the model or the device; names them.
    """
    check_engine_config(config)
    max_model_len(config, prepared)
    if config.engine == "fake":
        return _build_fake_runner(config, prepared, clock)
    if config.engine == "simulated":
        return _build_simulated_runner(config, prepared, clock)
    from engine.model_runner import build_model_runner

    return build_model_runner(config, prepared, nice)


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
    return FakeRunner(
        prepared,
        block_size=config.block_size,
        num_blocks=_num_blocks(config, layout, FAKE_KV_MEMORY_MIB),
        clock=clock,
        dtype=config.dtype,
        prefill_us_per_token=config.fake_prefill_us,
        decode_step_ms=config.fake_decode_ms,
    )


def _num_blocks(config: EngineConfig, layout: KVLayout, memory_mib: float) -> int:
    """``memory_mib``: when the option is 0."""
    memory_bytes = (config.kv_memory_mib or memory_mib) * 2**20
    num_blocks = int(memory_bytes // layout.block_bytes)
    if num_blocks < 1:
        raise ConfigError(
            f"kv_memory_mib: {config.kv_memory_mib:g} MiB hold no block of {layout.block_bytes} "
            "bytes"
        ).advise("raise --kv-memory-mib or lower --block-size")
    return num_blocks


def _build_simulated_runner(
    config: EngineConfig, prepared: PreparedModel, clock: Clock
) -> SimulatedRunner:
    layout = _simulated_layout(config)
    return SimulatedRunner(
        prepared,
        layout,
        num_blocks=_num_blocks(config, layout, SIMULATED_KV_MEMORY_MIB),
        cost=simulated_cost(config),
        clock=clock,
    )


def simulated_cost(config: EngineConfig) -> StepCost:
    return StepCost(
        PrefillCost(
            config.sim_chunk_ms * 1e-3,
            config.sim_prompt_token_us * 1e-6,
            config.sim_squared_token_ns * 1e-9,
        ),
        DecodeCost(
            config.sim_step_ms * 1e-3, config.sim_sequence_us * 1e-6, config.sim_kv_token_ns * 1e-9
        ),
    )


def _simulated_layout(config: EngineConfig) -> KVLayout:
    """Raises ConfigError: nothing of that name has a shape."""
    if config.sim_shape == "none":
        head_dim = 1 if config.dtype == "float32" else 2
        return KVLayout(1, 1, head_dim, config.block_size, config.dtype)
    from engine.modelfiles.costs import shape_of, shipped_shapes

    shape = shape_of(config.sim_shape)
    if shape is None:
        raise ConfigError(
            f"sim_shape: {config.sim_shape!r} is no shipped shape and no folder with a config.json"
        ).advise(f"one of: none, {', '.join(shipped_shapes())}")
    return KVLayout(
        shape.num_layers, shape.num_kv_heads, shape.head_dim, config.block_size, config.dtype
    )
