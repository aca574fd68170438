"""Every family and rope variant, written by transformers' own classes: the same greedy tokens as
theirs in float32, and close logprobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from pdserve.types import SamplingParams
from support.model_steps import StepDriver
from support.tiny_families import CASES, write_tiny_family

MakeRunner = Callable[..., ModelRunner]

NUM_NEW = 16
LENGTHS = (1, 17, 300)


@pytest.fixture(params=["off", "auto"])
def native(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
async def test_greedy_tokens_and_logprobs(
    tmp_path: Path, make_runner: MakeRunner, case: str
) -> None:
    peer = write_tiny_family(tmp_path / "model", case)
    prepared = prepare_model(str(tmp_path / "model"), "float32", cache_dir=tmp_path)
    driver = StepDriver(make_runner(prepared))
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(3, 259, length).tolist()
        tokens = await driver.generate(ids, SamplingParams(max_tokens=NUM_NEW, num_logprobs=20))
        found_ids = [token.token_id for token in tokens]
        with torch.inference_mode():
            logits = peer(torch.tensor([ids + found_ids])).logits[0, length - 1 : -1]
        assert found_ids == logits.argmax(-1).tolist()
        for token, line in zip(tokens, logits.log_softmax(-1), strict=True):
            assert token.logprobs is not None
            top_ids, top = zip(*token.logprobs.top, strict=True)
            np.testing.assert_allclose(top, line[list(top_ids)].numpy(), atol=2e-4)
