"""Settings of the whole suite, and what several rooms' tests need of the real model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from pdserve.prepared import PreparedModel
    from support.transformers_reading import TransformersReading

# Examples are drawn the same way in every run; a deadline would assert on time.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests keep prepared models, instead of the user's own cache."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def smollm2(cache_root: Path) -> PreparedModel:
    """The real model in float32."""
    from engine.modelfiles.prepare import prepare_model

    return prepare_model("smollm2", "float32", cache_dir=cache_root)


@pytest.fixture(scope="session")
def by_transformers(
    smollm2: PreparedModel, tmp_path_factory: pytest.TempPathFactory
) -> TransformersReading:
    from support.transformers_reading import read_by_transformers

    return read_by_transformers(smollm2, tmp_path_factory.mktemp("transformers") / "SmolLM2")
