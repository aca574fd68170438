from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from engine.modelfiles.checkpoint import TextPart
from engine.modelfiles.hf_folder import open_hf_folder
from engine.modelfiles.hf_tokenizer import read_hf_text
from pdserve.errors import ModelFileError
from support.tiny_llama import (
    BOS_TOKEN_ID,
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    tiny_tokenizer,
    write_json,
    write_text_part,
    write_tiny_llama,
)

BOS, EOS = "<|im_start|>", "<|im_end|>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text_part(tmp_path, 320)
    return tmp_path


def read(folder: Path, **config: Any) -> TextPart:
    return read_hf_text(folder, config)[0]


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def post_process(folder: Path, template: str) -> None:
    tokenizer = tiny_tokenizer()
    special = [(BOS, BOS_TOKEN_ID), (EOS, EOS_TOKEN_ID)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def test_the_tokenizer_is_kept_as_it_is(folder: Path) -> None:
    text = read(folder, bos_token_id=BOS_TOKEN_ID, eos_token_id=EOS_TOKEN_ID)
    assert text == TextPart(
        tokenizer_json=(folder / "tokenizer.json").read_text(),
        chat_template=CHAT_TEMPLATE,
        bos_token_id=BOS_TOKEN_ID,
        eos_token_ids=(EOS_TOKEN_ID,),
        adds_bos=False,
    )


def test_truncation_and_padding_are_cleared(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    kept = Tokenizer.from_str(read(folder).tokenizer_json)
    assert len(kept.encode("0123456789").ids) == 10


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: missing"):
        read(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Abacus"}}'])
def test_an_unusable_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not"):
        read(folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("inline", "inline"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        (None, None),
    ],
)
def test_a_template_in_the_config(folder: Path, template: Any, expected: str | None) -> None:
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template=template)
    assert read(folder).chat_template == expected


def test_the_template_file_wins(folder: Path) -> None:
    configure(folder, chat_template="inline")
    assert read(folder).chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("template", [7, [{"name": "tool", "template": "t"}]])
def test_an_unusable_template(folder: Path, template: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template=template)
    with pytest.raises(ModelFileError, match="field chat_template: "):
        read(folder)


def test_a_template_that_is_not_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: not UTF-8"):
        read(folder)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, None, (2,)),
        ([5, 2], None, (5, 2)),
        (5, 2, (5, 2)),
        ([5, 7], [7, 9], (5, 7, 9)),
        (None, [9], (9,)),
        (None, None, (EOS_TOKEN_ID,)),  # tokenizer_config.json names it
    ],
)
def test_end_tokens(folder: Path, config: Any, generation: Any, expected: Any) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": generation})
    assert read(folder, eos_token_id=config).eos_token_ids == expected


@pytest.mark.parametrize("value", ["2", -1, [2, None], 1.5, True])
def test_end_tokens_of_a_wrong_kind(folder: Path, value: Any) -> None:
    with pytest.raises(ModelFileError, match="field eos_token_id: "):
        read(folder, eos_token_id=value)


def test_bos_by_name(folder: Path) -> None:
    configure(folder, bos_token={"content": "<|endoftext|>"})
    assert read(folder).bos_token_id == 0


@pytest.mark.parametrize("value", ["<nowhere>", 5, {"content": 5}])
def test_bos_by_a_name_that_is_not_there(folder: Path, value: Any) -> None:
    configure(folder, bos_token=value)
    with pytest.raises(ModelFileError, match="field bos_token: "):
        read(folder)


@pytest.mark.parametrize(
    ("post_processor", "add_bos_token", "expected"),
    [
        (f"{BOS} $A", None, True),
        (f"{BOS} $A", False, False),
        (f"{BOS} $A", True, True),
        ("$A", None, False),
        ("$A", True, True),
    ],
)
def test_who_adds_bos(
    folder: Path, post_processor: str, add_bos_token: bool | None, expected: bool
) -> None:
    post_process(folder, post_processor)
    configure(folder, add_bos_token=add_bos_token)
    text = read(folder, bos_token_id=BOS_TOKEN_ID)
    assert text.adds_bos is expected


@pytest.mark.parametrize("template", [f"$A {EOS}", f"{EOS} $A", f"{BOS} $A {EOS}"])
def test_other_added_tokens_are_refused(folder: Path, template: str) -> None:
    post_process(folder, template)
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: post_processor"):
        read(folder, bos_token_id=BOS_TOKEN_ID)


def test_prompts_that_end_with_eos_are_refused(folder: Path) -> None:
    configure(folder, add_eos_token=True)
    with pytest.raises(ModelFileError, match="field add_eos_token: "):
        read(folder)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny")
    write_text_part(folder, 321)
    with pytest.raises(ModelFileError, match="token id 320, the model only 320 tokens"):
        open_hf_folder(folder)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
def test_special_ids_outside_the_model(tmp_path: Path, field: str) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", config_changes={field: 320})
    with pytest.raises(ModelFileError, match=f"{field} 320 is not below 320"):
        open_hf_folder(folder)
