"""The text side on the tokenizer and template of SmolLM2, against the libraries' own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.modelfiles.gguf_file import open_gguf_file
from engine.modelfiles.resolve import resolve_source
from router.chat_template import ChatMessage
from router.tokenizer import TextModel

pytestmark = pytest.mark.model

QUESTION = ChatMessage("user", "What is 12 × 34? 🌊")
CHATS = [
    (QUESTION,),
    (ChatMessage("system", "Be brief."), QUESTION),
    (QUESTION, ChatMessage("assistant", "408"), ChatMessage("user", " and twice that?\n")),
]


@pytest.fixture(scope="module")
def text_part() -> tuple[Tokenizer, TextModel, str]:
    text = open_gguf_file(Path(resolve_source("smollm2").path)).text
    tokenizer = Tokenizer.from_str(text.tokenizer_json)
    model = TextModel(
        tokenizer,
        chat_template=text.chat_template,
        bos_token_id=text.bos_token_id,
        eos_token_ids=text.eos_token_ids,
        adds_bos=text.adds_bos,
    )
    assert text.chat_template is not None
    return tokenizer, model, text.chat_template


@given(token_ids=st.lists(st.integers(0, 49_151), max_size=30))
def test_deltas_add_up(text_part: tuple[Tokenizer, TextModel, str], token_ids: list[int]) -> None:
    tokenizer, model, _ = text_part
    detokenizer = model.detokenizer(continues=False)
    deltas = [*map(detokenizer.push, token_ids), detokenizer.finish()]
    assert "".join(deltas) == tokenizer.decode(token_ids, skip_special_tokens=True)


@given(text=st.text())
def test_text_comes_back_without_replacements(
    text_part: tuple[Tokenizer, TextModel, str], text: str
) -> None:
    tokenizer, model, _ = text_part
    detokenizer = model.detokenizer(continues=False)
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    assume(tokenizer.decode(token_ids) == text)  # its vocabulary lacks bytes of rare planes
    seen = itertools.accumulate([*map(detokenizer.push, token_ids), detokenizer.finish()])
    assert all(text.startswith(prefix) for prefix in seen)


@pytest.mark.parametrize("messages", CHATS)
def test_chats_render_as_transformers_renders_them(
    text_part: tuple[Tokenizer, TextModel, str], messages: tuple[ChatMessage, ...]
) -> None:
    tokenizer, model, template = text_part
    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    reference.chat_template = template
    expected = reference.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert model.render_chat(messages) == expected
