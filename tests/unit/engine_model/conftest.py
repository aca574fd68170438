"""Runners on tiny random models; every runner made through ``make_runner`` is closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.weights import map_weights
from engine.native import compiler
from pdserve.prepared import PreparedModel
from support.tiny_families import write_tiny_family
from support.tiny_llama import write_tiny_llama

PrepareTiny = Callable[..., PreparedModel]
MakeRunner = Callable[..., ModelRunner]

AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")


@pytest.fixture(scope="session")
def prepare_tiny(tmp_path_factory: pytest.TempPathFactory) -> PrepareTiny:
    """``prepare_tiny(dtype, **what write_tiny_llama takes)`` or ``(dtype, case=a family)``.

    With ``weights="int8"`` prepared so. Made once for the same arguments.
    """
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, PreparedModel] = {}

    def prepare(dtype: str = "float32", weights: str = "full", **changes: Any) -> PreparedModel:
        key = f"{dtype} {weights} {sorted(changes.items())}"
        if key not in made:
            folder = root / f"model{len(made)}"
            write = write_tiny_family if "case" in changes else write_tiny_llama
            write(folder, **changes)
            made[key] = prepare_model(str(folder), dtype, weights=weights, cache_dir=root / "cache")
        return made[key]

    return prepare


@pytest.fixture
def native() -> str:
    """What runners compute with: "off" torch, "auto" the host's C kernels, "avx2" those of AVX2.

    A module that tests several has a parametrised fixture of this name.
    """
    return "auto"


@pytest.fixture
async def make_runner(
    prepare_tiny: PrepareTiny, native: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeRunner]:
    """``make_runner(prepared or None, num_threads=, block_size=, num_blocks=)``."""
    if native == "avx2":
        monkeypatch.setattr(compiler, "HOST_FLAGS", AVX2_FLAGS)
        native = "auto"
    runners: list[ModelRunner] = []

    def make(
        prepared: PreparedModel | None = None,
        *,
        num_threads: int = 1,
        block_size: int = 16,
        num_blocks: int | None = None,
    ) -> ModelRunner:
        prepared = prepared or prepare_tiny()
        runner = ModelRunner(
            prepared,
            map_weights(prepared),
            device="cpu",
            num_blocks=num_blocks or 16384 // block_size,
            block_size=block_size,
            num_threads=num_threads,
            native=native,
        )
        runners.append(runner)
        return runner

    yield make
    for runner in runners:
        await runner.close()
