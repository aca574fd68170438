"""Prompts to token ids, and the text part of a prepared model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from pdserve.errors import InvalidRequest, ModelFileError
from router.chat_template import ChatMessage
from router.tokenizer import MAX_CHARS_ON_LOOP, TextModel
from support.scripted_tokens import BOS, END, byte_text_model, byte_tokenizer, write_byte_model

HELLO = (ChatMessage("user", "hi"),)


async def test_nothing_is_added_to_a_prompt() -> None:
    assert await byte_text_model().encode_prompt("Hé") == tuple("Hé".encode())


async def test_bos_goes_before_plain_prompts_once() -> None:
    model = byte_text_model(adds_bos=True)
    assert await model.encode_prompt("A") == (BOS, 65)
    assert await model.encode_prompt("<bos>A<end>") == (BOS, 65, END)
    assert await model.encode_rendered("A") == (65,)


async def test_a_chat_writes_its_own_bos() -> None:
    model = byte_text_model(adds_bos=True)
    rendered = model.render_chat(HELLO)
    assert rendered == "<bos>[user]hi[assistant]"
    assert await model.encode_rendered(rendered) == (BOS, *b"[user]hi[assistant]")


async def test_long_texts_leave_the_loop_free() -> None:
    model = byte_text_model()
    text = "sea " * MAX_CHARS_ON_LOOP
    encoding = asyncio.ensure_future(model.encode_prompt(text))
    await asyncio.sleep(0)
    assert not encoding.done()  # it is a thread's work, so this task got its turn
    assert await encoding == tuple(text.encode())


async def test_load_reads_the_prepared_folder(tmp_path: Path) -> None:
    model = TextModel.load(write_byte_model(tmp_path, adds_bos=True))
    assert await model.encode_prompt("A") == (BOS, 65)
    assert model.render_chat(HELLO) == "<bos>[user]hi[assistant]"


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    prepared = write_byte_model(tmp_path)
    prepared.tokenizer_path.write_text("{}")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not a tokenizer"):
        TextModel.load(prepared)
    prepared.tokenizer_path.unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        TextModel.load(prepared)


async def test_truncation_left_in_the_file_is_switched_off(tmp_path: Path) -> None:
    prepared = write_byte_model(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(prepared.tokenizer_path))
    assert len(await TextModel.load(prepared).encode_prompt("longer than four")) == 16


def test_a_model_without_template_says_so() -> None:
    model = byte_text_model(chat_template=None)
    assert not model.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        model.render_chat(HELLO)


def test_adds_bos_needs_a_bos() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"a": 0}, unk_token="a"))
    with pytest.raises(ModelFileError, match="bos_token_id is null"):
        TextModel(tokenizer, adds_bos=True)
