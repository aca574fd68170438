"""Stop strings against a scanner that looks at the whole text after every character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import InvalidRequest
from router.stop_strings import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, StopScanner


def plain_scan(text: str, stop_strings: tuple[str, ...]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stop_strings if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def scan(pieces: list[str], stop_strings: tuple[str, ...]) -> tuple[str, str | None]:
    scanner = StopScanner(stop_strings)
    given_out = ""
    for piece in pieces:
        result = scanner.push(piece)
        given_out += result.text
        if result.matched is not None:
            return given_out, result.matched
    return given_out + scanner.finish(), None


few_letters = st.text(alphabet="abé", max_size=6)


@given(
    pieces=st.lists(few_letters, max_size=8),
    stop_strings=st.lists(few_letters.filter(bool), max_size=4).map(tuple),
)
def test_the_cut_into_pieces_does_not_matter(
    pieces: list[str], stop_strings: tuple[str, ...]
) -> None:
    assert scan(pieces, stop_strings) == plain_scan("".join(pieces), stop_strings)


@given(pieces=st.lists(few_letters), stop=few_letters.filter(bool))
def test_exactly_the_possible_beginning_is_held_back(pieces: list[str], stop: str) -> None:
    scanner = StopScanner((stop,))
    pushed = given_out = ""
    for piece in pieces:
        result = scanner.push(piece)
        if result.matched is not None:
            return
        pushed += piece
        given_out += result.text
        beginnings = [stop[:size] for size in range(len(stop)) if pushed.endswith(stop[:size])]
        assert pushed == given_out + max(beginnings, key=len)


def test_a_match_across_pieces_drops_itself_and_the_rest() -> None:
    scanner = StopScanner(("END",))
    assert scanner.push("fine E").text == "fine "
    result = scanner.push("NDless")
    assert (result.text, result.matched) == ("", "END")


def test_what_was_held_back_in_vain_is_given_out() -> None:
    scanner = StopScanner(("aab",))
    assert [scanner.push(char).text for char in "aaac"] == ["", "", "a", "aac"]
    assert scanner.finish() == ""


def test_limits_are_named() -> None:
    assert StopScanner(tuple(f"s{i}" for i in range(MAX_STOP_STRINGS))).push("x").text == "x"
    with pytest.raises(InvalidRequest, match="stop: at most 16 strings, not 17"):
        StopScanner(("x",) * (MAX_STOP_STRINGS + 1))
    with pytest.raises(InvalidRequest, match=r"stop\[1\]: must have 1 to 256 characters, not 0"):
        StopScanner(("x", ""))
    with pytest.raises(InvalidRequest, match=r"stop\[0\]: .*not 257"):
        StopScanner(("x" * (MAX_STOP_STRING_CHARS + 1),))
