"""The real model: prepares in seconds, tokenises as it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.modelfiles.prepare import model_summary, prepare_model
from engine.modelfiles.weights import map_weights
from pdserve.prepared import ModelConfig, PreparedModel, RopeScaling

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    cache: Path = tmp_path_factory.mktemp("cache")
    return prepare_model("smollm2", "bfloat16", cache_dir=cache)


def test_its_config(prepared: PreparedModel) -> None:
    assert prepared.config == ModelConfig(
        architecture="llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        rope_scaling=RopeScaling(),
        max_positions=8192,
        tied_embeddings=True,
    )
    assert (prepared.name, prepared.bos_token_id, prepared.eos_token_ids) == ("smollm2", 1, (2,))
    assert not prepared.adds_bos


def test_its_summary(prepared: PreparedModel) -> None:
    summary = model_summary(prepared)
    assert summary.num_parameters == 134_515_008
    assert summary.weight_bytes == 269_030_016
    assert summary.kv_bytes_per_token == 23_040
    assert summary.layer_flops_per_token == 212_336_640
    assert summary.head_flops_per_token == 56_623_104


def test_its_weights_are_mapped_whole(prepared: PreparedModel) -> None:
    weights = map_weights(prepared)
    assert sum(tensor.numel() for tensor in weights.values()) == 134_515_008
    assert tuple(weights["layers.29.qkv"].shape) == (960, 576)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("In 2024, 31337", "In Ġ 2 0 2 4 , Ġ 3 1 3 3 7"),
        ("What is the capital of France?", "What Ġis Ġthe Ġcapital Ġof ĠFrance ?"),
        ("v1.2", "v 1 . 2"),
    ],
)
def test_digits_stand_alone(prepared: PreparedModel, text: str, tokens: str) -> None:
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    assert tokenizer.encode(text, add_special_tokens=False).tokens == tokens.split()


def test_special_tokens_are_one_id_and_are_not_shown(prepared: PreparedModel) -> None:
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    ids = tokenizer.encode("<|im_start|>user\n42<|im_end|>", add_special_tokens=False).ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 6)
    assert tokenizer.decode(ids) == "user\n42"


def test_its_chat_template_came_along(prepared: PreparedModel) -> None:
    assert "You are a helpful AI assistant named SmolLM" in (prepared.chat_template or "")
