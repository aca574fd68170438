"""The text part of a Hugging Face folder: tokenizer.json, chat template, bos and eos.

tokenizer.json is kept as it is, except that truncation and padding settings, which would silently
change prompts, are cleared. Prompts are encoded without the tokenizer's own special tokens
everywhere in this project; whether a plain prompt starts with bos is worked out once, here.
Not covered: folders without tokenizer.json (sentencepiece's tokenizer.model alone).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.modelfiles.checkpoint import TextPart, load_tokenizer
from engine.modelfiles.field_reader import FieldReader, read_json_object
from pdserve.errors import ModelFileError

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

_PROBE = "a"  # any plain text: what surrounds its tokens comes from the post-processor


def read_hf_text(folder: Path, config: Mapping[str, Any]) -> tuple[TextPart, Tokenizer]:
    """``config`` is config.json.

    Raises:
        ModelFileError: tokenizer.json absent or unusable, a template or token id of a wrong kind.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ModelFileError(f"{path}: missing; only the `tokenizers` format is read")
    tokenizer_json = _without_limits(path)
    tokenizer = load_tokenizer(tokenizer_json, str(path))
    settings = _read_optional(folder / TOKENIZER_CONFIG_FILE)
    bos = FieldReader(str(folder / "config.json"), config).token_id("bos_token_id")
    if bos is None:
        bos = _named_token(settings, "bos_token", tokenizer)
    text = TextPart(
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(folder, settings),
        bos_token_id=bos,
        eos_token_ids=_eos_token_ids(folder, config, settings, tokenizer),
        adds_bos=_adds_bos(settings, tokenizer, bos, str(path)),
    )
    return text, tokenizer


def _read_optional(path: Path) -> FieldReader:
    return FieldReader(str(path), read_json_object(path) if path.is_file() else {})


def _without_limits(path: Path) -> str:
    document = read_json_object(path)
    if document.get("truncation") is None and document.get("padding") is None:
        return path.read_text(encoding="utf-8")
    return json.dumps({**document, "truncation": None, "padding": None}, ensure_ascii=False)


def _chat_template(folder: Path, settings: FieldReader) -> str | None:
    """The file wins over the field, as in transformers; of several templates the default one."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path}: not UTF-8: {error}") from error
    template = settings.values.get("chat_template")
    if isinstance(template, list):
        named = {t["name"]: t["template"] for t in template if {"name", "template"} <= t.keys()}
        template = named.get("default")
        if template is None:
            raise settings.error("chat_template", f"no 'default' among {sorted(named)}")
    if template is not None and not isinstance(template, str):
        raise settings.error("chat_template", "is not text")
    return template


def _eos_token_ids(
    folder: Path, config: Mapping[str, Any], settings: FieldReader, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Those of config.json, then those that only generation_config.json has (chat ends)."""
    generation = _read_optional(folder / GENERATION_CONFIG_FILE)
    ids = FieldReader(str(folder / "config.json"), config).token_ids("eos_token_id")
    ids += generation.token_ids("eos_token_id")
    if not ids:
        named = _named_token(settings, "eos_token", tokenizer)
        ids = () if named is None else (named,)
    return tuple(dict.fromkeys(ids))


def _named_token(settings: FieldReader, name: str, tokenizer: Tokenizer) -> int | None:
    """The id of a token that tokenizer_config.json names as text or as {"content": text}."""
    value = settings.values.get(name)
    content = value.get("content") if isinstance(value, dict) else value
    if content is None:
        return None
    if not isinstance(content, str):
        raise settings.error(name, "is not text")
    token_id: int | None = tokenizer.token_to_id(content)
    if token_id is None:
        raise settings.error(name, f"{content!r} is not in {TOKENIZER_FILE}")
    return token_id


def _adds_bos(settings: FieldReader, tokenizer: Tokenizer, bos: int | None, where: str) -> bool:
    """An explicit add_bos_token decides; else what the tokenizer's post-processor does."""
    if settings.flag("add_eos_token", False):
        raise settings.error("add_eos_token", "prompts that end with eos are not supported")
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    full = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    if full not in (bare, [bos, *bare]):
        raise ModelFileError(
            f"{where}: post_processor: adds tokens other than a leading bos ({bos}): "
            f"{bare} becomes {full}"
        )
    if settings.has("add_bos_token"):
        return settings.flag("add_bos_token")
    return full != bare
