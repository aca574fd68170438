"""Mistral, written by transformers' own classes: equal greedy ids, close logprobs, float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.model_runner import ModelRunner
from engine.modelfiles.prepare import prepare_model
from pdserve.types import SamplingParams
from support.model_steps import StepDriver
from support.tiny_llama import write_text_part

NUM_NEW = 16


async def test_greedy_tokens_and_logprobs(
    tmp_path: Path, make_runner: Callable[..., ModelRunner]
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(5)
    config = MistralConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=None,
        max_position_embeddings=2048, initializer_range=0.25,
    )  # fmt: skip
    peer: Any = MistralForCausalLM(config)
    peer.eval()
    folder = tmp_path / "model"
    peer.save_pretrained(folder)
    write_text_part(folder, 320)
    driver = StepDriver(make_runner(prepare_model(str(folder), "float32", cache_dir=tmp_path)))
    for length in (1, 17, 300):
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
