from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.modelfiles.checkpoint import TextPart
from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_bpe import PRE_TOKENIZERS
from engine.modelfiles.gguf_tokenizer import read_gguf_text
from pdserve.errors import ModelFileError
from support.tiny_gguf import text_keys
from support.tiny_llama import (
    BOS_TOKEN_ID,
    CHAT_TEMPLATE,
    EOS_TOKEN_ID,
    FIRST_BYTE_TOKEN_ID,
    tiny_tokenizer,
)

TEXTS = [
    "hello world", "In 2024, 31337 of them", "naïve café 你好 🙂", "  two  spaces\n\n\ttabs ",
    "don't we'll I'M", "<|im_start|>user\nHi 42<|im_end|>\n", "x**2 # 3.14159", "\u00bd\u2163 \r\n",
]  # fmt: skip


def read(pre: str = "smollm", **changes: Any) -> TextPart:
    return read_gguf_text(fields(pre, **changes))[0]


def fields(pre: str, **changes: Any) -> FieldReader:
    keys = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return FieldReader("x.gguf", {**text_keys(320, pre), **keys})


def pieces(pre: str, text: str) -> list[str]:
    """How the text is cut before BPE, as text."""
    _, tokenizer = read_gguf_text(fields(pre))
    assert tokenizer.pre_tokenizer is not None
    cut = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


def test_the_text_part() -> None:
    text = read()
    assert text.chat_template == CHAT_TEMPLATE
    assert (text.bos_token_id, text.eos_token_ids) == (BOS_TOKEN_ID, (EOS_TOKEN_ID,))
    assert not text.adds_bos


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_text_survives_encoding_and_decoding(pre: str) -> None:
    tokenizer = Tokenizer.from_str(read(pre).tokenizer_json)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_gpt2_agrees_with_the_tiny_tokenizer() -> None:
    ours, theirs = Tokenizer.from_str(read("gpt-2").tokenizer_json), tiny_tokenizer()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["In", " ", "2", "0", "2", "4", ",", " ", "3", "1", "3", "3", "7"]),
        ("llama-bpe", ["In", " ", "202", "4", ",", " ", "313", "37"]),
        ("gpt-2", ["In", " 2024", ",", " 31337"]),
        ("default", ["In", " ", "202", "4", ",", " ", "313", "37"]),
    ],
)
def test_digits_are_cut_as_the_name_says(pre: str, expected: list[str]) -> None:
    assert pieces(pre, "In 2024, 31337") == expected


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["don", "'t", " WE", "'", "LL", " a", "+", "b", "  ", " c"]),
        ("llama-bpe", ["don", "'t", " WE", "'LL", " a", "+b", "  ", " c"]),
        ("gpt-2", ["don", "'t", " WE", "'", "LL", " a", "+", "b", "  ", " c"]),
        ("default", ["don", "'", "t", " WE", "'", "LL", " a", "+", "b", "  ", " c"]),
    ],
)
def test_words_are_cut_as_the_name_says(pre: str, expected: list[str]) -> None:
    assert pieces(pre, "don't WE'LL a+b   c") == expected


@pytest.mark.parametrize("pre", ["llama3", "llama-v3"])
def test_other_names_of_llama3(pre: str) -> None:
    assert pieces(pre, "31337 you'LL") == pieces("llama-bpe", "31337 you'LL")


def test_no_name_is_the_default() -> None:
    assert read(pre=None).tokenizer_json == read("default").tokenizer_json  # type: ignore[arg-type]


@pytest.mark.parametrize("pre", ["gpt-4o", "deepseek-llm", "qwen35", "Smollm"])
def test_other_names_are_refused(pre: str) -> None:
    with pytest.raises(ModelFileError, match=rf"field tokenizer\.ggml\.pre: '{pre}'"):
        read(pre)


@pytest.mark.parametrize("model", ["gemma4", "bert", "t5", None])
def test_other_models_are_refused(model: str | None) -> None:
    with pytest.raises(ModelFileError, match=r"field tokenizer\.ggml\.model: "):
        read(model=model)


def test_token_types() -> None:
    types = [1] * 320
    types[:3] = [3, 3, 3]
    types[FIRST_BYTE_TOKEN_ID + 256] = 4  # "aa": matched whole before text is cut, and shown
    tokenizer = Tokenizer.from_str(read(token_type=types).tokenizer_json)
    ids = tokenizer.encode("<|im_start|>1aa2<|im_end|>", add_special_tokens=False).ids
    assert ids == [1, FIRST_BYTE_TOKEN_ID + ord("1"), 259, FIRST_BYTE_TOKEN_ID + ord("2"), 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "1aa2"


def test_no_token_types_means_no_special_tokens() -> None:
    tokenizer = Tokenizer.from_str(read(token_type=None).tokenizer_json)
    assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False).ids) > 1


def test_llama3_takes_whole_words_without_merges() -> None:
    tokens = [*text_keys(320, "gpt-2")["tokenizer.ggml.tokens"], "zygox"]
    for pre, num_tokens in (("llama-bpe", 1), ("smollm", 5)):
        text = read(pre, tokens=tokens, token_type=None)
        assert len(Tokenizer.from_str(text.tokenizer_json).encode("zygox").ids) == num_tokens


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [
        ("smollm", None, False),
        ("smollm", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_who_adds_bos(pre: str, add_bos: bool | None, expected: bool) -> None:
    assert read(pre, add_bos_token=add_bos).adds_bos is expected


def test_end_tokens() -> None:
    assert read(eot_token_id=5, eom_token_id=2).eos_token_ids == (2, 5)
    assert read(eos_token_id=None).eos_token_ids == ()
    keys = text_keys(320, "llama-bpe")
    tokens = [*keys["tokenizer.ggml.tokens"][:-2], "<|eot_id|>", "<|end_of_text|>"]
    merges = keys["tokenizer.ggml.merges"][:-2]
    text = read("llama-bpe", tokens=tokens, merges=merges, token_type=[1] * 318 + [3, 3])
    assert text.eos_token_ids == (2, 319, 318)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("tokens", None, "missing"),
        ("tokens", [1, 2], "list of text"),
        ("tokens", ["a", "b", "a"], "'a' is there twice"),
        ("merges", None, "missing"),
        ("merges", ["a a", "q zz"], "'q zz' is not made of tokens"),
        ("merges", ["aa"], "'aa' is not made of tokens"),
        ("token_type", [1, 1], "list of 320 numbers"),
        ("token_type", 3, "list of 320 numbers"),
        ("add_eos_token", True, "not supported"),
        ("add_bos_token", 1, "not true or false"),
        ("bos_token_id", "1", "not a token id"),
    ],
)
def test_lists_that_do_not_fit(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ModelFileError, match=rf"field tokenizer\.ggml\.{name}: .*{problem}"):
        read(**{name: value})


def test_no_chat_template() -> None:
    keys = FieldReader("x.gguf", {**text_keys(320, "smollm"), "tokenizer.chat_template": None})
    assert read_gguf_text(keys)[0].chat_template is None
