"""The fields of transformers' config classes: each is read by us (used or refused) or listed here,
and where it may be left out we take the same default."""

from __future__ import annotations

from typing import Any

import pytest

from engine.modelfiles.hf_config import parse_hf_config
from pdserve.errors import ModelFileError

CLASSES = ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "Phi3Config"]
# Labels, training, what a call returns, and the token ids that the tokenizer's side deals with.
NOT_OF_THE_MODEL = {
    "_name_or_path", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "resid_pdrop", "return_dict",
    "transformers_version", "use_cache",
}  # fmt: skip
WITHOUT_DEFAULT = {
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads",
}  # fmt: skip


def document_of(name: str, **changes: Any) -> dict[str, Any]:
    import transformers

    document: dict[str, Any] = getattr(transformers, name)(**changes).to_dict()
    document["architectures"] = [name.replace("Config", "ForCausalLM")]  # as save_pretrained does
    return document


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_read_or_without_influence(name: str) -> None:
    document = document_of(name)
    parse_hf_config("config.json", document)
    for field in document.keys() - NOT_OF_THE_MODEL:
        with pytest.raises(ModelFileError, match=f"field {field}: "):
            parse_hf_config("config.json", {**document, field: "another"})


@pytest.mark.parametrize("name", CLASSES)
def test_absent_fields_take_the_default_of_the_class(name: str) -> None:
    """With heads that are neither as many nor as wide as any default."""
    document = document_of(name, hidden_size=1024, num_attention_heads=64)
    expected = parse_hf_config("config.json", document)
    for field in document:
        shorter = {key: value for key, value in document.items() if key != field}
        if field in WITHOUT_DEFAULT:
            with pytest.raises(ModelFileError, match=f"field {field}: "):
                parse_hf_config("config.json", shorter)
        else:
            assert parse_hf_config("config.json", shorter) == expected, field
