"""GGUF metadata of real vocabularies gives the ids of the models' own encoders, text after text."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

import pytest

from engine.modelfiles.field_reader import FieldReader
from engine.modelfiles.gguf_tokenizer import read_gguf_text
from support import real_tokenizers
from support.real_tokenizers import RealTokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? I'LL say it's fine; WE'VE seen it.",
    "Привет, мир! Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "你好，世界。今天天气很好，我们去公园散步吧！",
    "こんにちは世界。カタカナとひらがなと漢字が混ざった文章です。",
    "안녕하세요, 세계! 오늘은 날씨가 좋네요.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "नमस्ते दुनिया, आप कैसे हैं? हिन्दी में लिखा हुआ।",
    "Zażółć gęślą jaźń — naïve café, Ünïcödé, ŐŰ, smørrebrød, İstanbul.",
    'def f(x: int) -> str:\n    return f"{x**2:>8.3f}\\t"  # 3.14159\n\n\nclass A(B):\n\tpass\n',
    '{"key": [1, 22, 333, 4444, 55555], "π": 3.14e-10, "ok": true}',
    "https://example.org/a/b?c=d&e=%20#frag  me@example.org  C:\\Windows\\System32",
    "🙂👩‍👩‍👧‍👦 🇩🇪 ✈️ flags and emoji 👍🏽!!! ½ Ⅷ ² ①②③",
    "   leading and   inner    spaces \t tabs\r\nCRLF lines \n \n trailing   ",
    "x\u00a0y\u2003z\u200b zero-width \ufeff bom\u3000ideographic",
    "cafe\u0301 e\u0308 \u1112\u1161\u11ab",  # not composed
]
BYTE_PAIRS: dict[str, Callable[[], RealTokenizer]] = {
    "qwen2": real_tokenizers.qwen2,
    "llama-bpe": real_tokenizers.llama3,
    "tekken": real_tokenizers.tekken,
}
SENTENCEPIECE = (
    "tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2",
    "mistral_instruct_tokenizer_240323.model.v3",
)  # fmt: skip


def texts() -> list[str]:
    """The sentences, and 500 texts pieced together from cuts of them."""
    rng = random.Random(3)
    made = []
    for _ in range(500):
        cuts = []
        for sentence in rng.choices(SENTENCES, k=rng.randint(1, 6)):
            start = rng.randrange(len(sentence))
            cuts.append(sentence[start : start + rng.randint(1, 40)])
        made.append(rng.choice(["", " ", "\n", "  "]).join(cuts))
    return [*SENTENCES, *made]


def check(real: RealTokenizer, expected: Callable[[str], list[int]]) -> None:
    _, tokenizer = read_gguf_text(FieldReader("x.gguf", real.keys))
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == expected(text), repr(text)
        assert len(ids) > 0


@pytest.mark.parametrize("name", BYTE_PAIRS)
def test_byte_pairs_against_tiktoken(name: str) -> None:
    real = BYTE_PAIRS[name]()

    def expected(text: str) -> list[int]:
        composed = unicodedata.normalize("NFC", text) if name == "qwen2" else text
        return real.encode(composed)

    check(real, expected)


@pytest.mark.parametrize("file_name", SENTENCEPIECE)
def test_sentencepiece_models(file_name: str) -> None:
    real = real_tokenizers.sentencepiece(file_name)
    check(real, real.encode)


def test_the_texts_tell_the_cuts_apart() -> None:
    """Or a wrong rule would go unseen: no two rules cut these texts alike."""
    keys = real_tokenizers.llama3().keys
    found = []
    for pre in ("qwen2", "llama-bpe", "tekken", "gpt-2", "smollm", "default"):
        fields = FieldReader("x.gguf", {**keys, "tokenizer.ggml.pre": pre})
        cutter = read_gguf_text(fields)[1].pre_tokenizer
        assert cutter is not None
        found.append([cutter.pre_tokenize_str(text) for text in texts()])
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
