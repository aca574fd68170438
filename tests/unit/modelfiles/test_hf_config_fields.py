"""Every field of transformers' config classes is read by us (used or refused), or listed here."""

from __future__ import annotations

from typing import Any

import pytest

from engine.modelfiles.hf_config import parse_hf_config
from pdserve.errors import ModelFileError

# Labels, training, what a call returns, and the token ids that the tokenizer's side deals with.
NOT_OF_THE_MODEL = {
    "_name_or_path", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "id2label", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "transformers_version", "use_cache",
}  # fmt: skip


@pytest.mark.parametrize("name", ["LlamaConfig", "MistralConfig"])
def test_every_field_is_read_or_without_influence(name: str) -> None:
    import transformers

    changes = {"sliding_window": None} if name == "MistralConfig" else {}
    document: dict[str, Any] = getattr(transformers, name)(**changes).to_dict()
    document["architectures"] = [name.replace("Config", "ForCausalLM")]  # as save_pretrained does
    parse_hf_config("config.json", document)
    for field in document.keys() - NOT_OF_THE_MODEL:
        with pytest.raises(ModelFileError, match=f"field {field}: "):
            parse_hf_config("config.json", {**document, field: "another"})
