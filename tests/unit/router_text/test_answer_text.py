"""Text of tokens that come together against text of tokens one by one, stop strings in between."""

from __future__ import annotations

import random

import pytest

from pdserve.types import FinishReason, RequestId, TokenEvent
from router.answer_text import AnswerText, Taken
from support.scripted_tokens import byte_text_model

ALPHABET = "ab é€😀 \ufffd"


def answer(*stop_strings: str, min_tokens: int = 0) -> AnswerText:
    return AnswerText(byte_text_model().detokenizer(continues=True), stop_strings, min_tokens)


def tokens(ids: list[int], reason: FinishReason) -> list[TokenEvent]:
    last = len(ids) - 1
    return [
        TokenEvent(RequestId("r"), 1, index, token_id, reason if index == last else None)
        for index, token_id in enumerate(ids)
    ]


def read(text: AnswerText, events: list[TokenEvent], cuts: list[int]) -> Taken:
    """All of it, in pieces that end at ``cuts`` and at the end."""
    told, num_tokens = "", 0
    for start, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        if start == end:
            continue
        taken = text.take(events[start:end])
        told, num_tokens = told + taken.text, num_tokens + taken.num_tokens
        if taken.reason is not None:
            return Taken(told, num_tokens, taken.reason)
    raise AssertionError("the last token ends the text")


@pytest.mark.parametrize("reason", list(FinishReason))
@pytest.mark.parametrize("stops", [(), ("ab",), ("zzz",), ("b ", "€"), ("é" * 9,)])
@pytest.mark.parametrize("min_tokens", [0, 5])
def test_pieces_of_any_size_give_what_single_tokens_give(
    reason: FinishReason, stops: tuple[str, ...], min_tokens: int
) -> None:
    draw = random.Random(f"{reason} {stops}")
    for _ in range(60):
        written = "".join(draw.choice(ALPHABET) for _ in range(draw.randrange(1, 20))).encode()
        events = tokens(list(written[: draw.randrange(1, len(written) + 1)]), reason)
        one_by_one = read(
            answer(*stops, min_tokens=min_tokens), events, list(range(1, len(events)))
        )
        cuts = sorted(draw.randrange(len(events)) for _ in range(draw.randrange(4)))
        assert read(answer(*stops, min_tokens=min_tokens), events, cuts) == one_by_one
        if not stops:  # one by one it is the way of stop strings, of which none is found
            assert read(answer("\0never"), events, cuts) == one_by_one


def test_tokens_after_a_stop_string_do_not_count() -> None:
    taken = answer("b").take(tokens(list(b"abab"), FinishReason.LENGTH))
    assert taken == Taken("a", 2, FinishReason.STOP)
