"""The text part of a model as a folder that ``transformers.AutoTokenizer`` opens.

Load tools count and make prompts with the model's own tokenizer, which they load by a folder's
name. A prepared model holds all that is needed but the small file transformers starts from. Not
covered: tools that want the weights too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer

from pdserve.prepared import PreparedModel


def write_tokenizer_folder(prepared: PreparedModel, folder: Path) -> None:
    """``folder`` must exist; what it has is overwritten."""
    shutil.copy(prepared.tokenizer_path, folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    eos_id = prepared.eos_token_ids[0] if prepared.eos_token_ids else None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": prepared.config.max_positions,
        "clean_up_tokenization_spaces": False,
        "bos_token": _name(tokenizer, prepared.bos_token_id),
        "eos_token": _name(tokenizer, eos_id),
        "chat_template": prepared.chat_template,
    }
    kept = {key: value for key, value in config.items() if value is not None}
    text = json.dumps(kept, ensure_ascii=False, indent=1)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _name(tokenizer: Tokenizer, token_id: int | None) -> str | None:
    return None if token_id is None else tokenizer.id_to_token(token_id)
