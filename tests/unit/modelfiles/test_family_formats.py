"""Every family from its folder and from a GGUF file: the same config and the same prepared bits.

That the prepared bits give transformers' tokens: tests/unit/engine_model/test_families.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.modelfiles.prepare import prepare_model
from support.tiny_families import CASES, write_tiny_family
from support.tiny_gguf import write_family_gguf

# What llama.cpp's converter does not write down: dynamic's factor (which changes nothing within
# the context), yarn's own attention factor and cuts, the windows of Mistral and Qwen2.
LOST_IN_GGUF = {
    "llama, dynamic", "llama, yarn, own numbers", "llama, yarn, deepseek's scale",
    "mistral, window", "qwen2, window, yarn", "qwen2, llama3",
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CASES if case not in LOST_IN_GGUF])
def test_both_formats_prepare_the_same(tmp_path: Path, case: str) -> None:
    peer = write_tiny_family(tmp_path / "model", case)
    gguf = write_family_gguf(tmp_path / "model.gguf", peer)
    from_folder = prepare_model(str(tmp_path / "model"), "float32", cache_dir=tmp_path / "cache")
    from_gguf = prepare_model(str(gguf), "float32", cache_dir=tmp_path / "cache")
    assert from_gguf.config == from_folder.config
    assert from_gguf.tensors == from_folder.tensors
    assert from_gguf.weights_path.read_bytes() == from_folder.weights_path.read_bytes()
