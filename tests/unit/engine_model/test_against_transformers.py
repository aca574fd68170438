"""The same numbers as transformers on the same folder, float32: logits close, greedy ids equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from pdserve.types import SamplingParams
from support.model_steps import StepDriver
from support.tiny_llama import LINEAR_ROPE_SCALING, LLAMA3_ROPE_SCALING, write_tiny_llama

MakeRunner = Callable[..., ModelRunner]

MODELS: dict[str, dict[str, Any]] = {
    "gqa, tied": {"num_heads": 4, "num_kv_heads": 2},
    "untied, own head_dim": {"tied": False, "head_dim": 32},
    "no gqa, llama3 rope": {
        "num_heads": 4, "num_kv_heads": 4, "rope_scaling": LLAMA3_ROPE_SCALING,
        "rope_theta": 500000.0,
    },
    "linear rope": {"rope_scaling": LINEAR_ROPE_SCALING, "num_layers": 3},
}  # fmt: skip
NUM_NEW = 24


@pytest.fixture(params=["off", "auto", "avx2"])
def native(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load_peer(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(peer: Any, prompt_ids: list[int], num_tokens: int) -> list[int]:
    """Token ids of a plain loop: argmax, no cache, end of sequence ignored."""
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids.append(int(peer(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("name", MODELS)
async def test_greedy_tokens_and_logprobs(
    tmp_path: Path, make_runner: MakeRunner, name: str
) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=3, **MODELS[name])
    peer = load_peer(folder)
    driver = StepDriver(make_runner(prepare_model(str(folder), "float32", cache_dir=tmp_path)))
    sampling = SamplingParams(max_tokens=NUM_NEW, num_logprobs=20)
    for length in (1, 17, 300):
        prompt_ids = np.random.default_rng(length).integers(3, 259, length).tolist()
        tokens = await driver.generate(prompt_ids, sampling)
        token_ids = [token.token_id for token in tokens]
        assert token_ids == greedy(peer, prompt_ids, NUM_NEW)
        with torch.inference_mode():
            logits = peer(torch.tensor([prompt_ids + token_ids])).logits[0, length - 1 : -1]
        expected = logits.log_softmax(-1)
        for token, line in zip(tokens, expected, strict=True):
            assert token.logprobs is not None
            ids = [token_id for token_id, _ in token.logprobs.top]
            found = [logprob for _, logprob in token.logprobs.top]
            np.testing.assert_allclose(found, line[ids].numpy(), atol=2e-4)
            assert ids[0] == token.token_id


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_two_bytes_a_number_are_near(
    tmp_path: Path, make_runner: MakeRunner, dtype: str
) -> None:
    """Not equal (roundings fall elsewhere), but most teacher-forced choices agree."""
    folder = write_tiny_llama(tmp_path / "model", seed=4, dtype=dtype)
    peer = load_peer(folder)
    driver = StepDriver(make_runner(prepare_model(str(folder), dtype, cache_dir=tmp_path)))
    ids = np.random.default_rng(0).integers(3, 259, 60).tolist()
    with torch.inference_mode():
        expected = peer(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    sequence = driver.open(ids[:1], SamplingParams(max_tokens=60))
    found = [(await driver.prefill(sequence, 1)).token_id]
    for token_id in ids[1:]:
        sequence.token_ids[-1] = token_id
        found += [token.token_id for token in await driver.decode([sequence])]
    sequence.lease.release()
    agreeing = sum(a == b for a, b in zip(found, expected, strict=True))
    assert agreeing >= 50
