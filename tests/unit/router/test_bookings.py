"""Bookings by number: neither lost nor counted twice, whatever order answers and statuses have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.types import Leg, RequestId
from router.bookings import Booking, Bookings, LegKey


def key(number: int, request_id: str = "r", leg: Leg = Leg.PREFILL) -> LegKey:
    return LegKey(RequestId(request_id), number, leg)


def booking(seq: int, request_id: str = "r") -> Booking:
    """The ``seq``-th Submit: epoch, blocks and time of sending follow from its number."""
    return Booking(key(seq, request_id), seq, 100.0 + seq, num_blocks=2**seq, num_tokens=seq)


def booked(num: int) -> Bookings:
    bookings = Bookings()
    for seq in range(1, num + 1):
        bookings.add(booking(seq))
    return bookings


def unseen_seqs(bookings: Bookings) -> list[int]:
    return [each.submit_seq for each in bookings.unseen()]


def test_a_booking_is_unseen_until_a_status_echoes_its_number() -> None:
    bookings = booked(3)
    assert unseen_seqs(bookings) == [3, 2, 1]
    bookings.seen(0)
    assert unseen_seqs(bookings) == [3, 2, 1]
    bookings.seen(2)
    assert unseen_seqs(bookings) == [3]
    bookings.seen(3)
    assert unseen_seqs(bookings) == []
    assert len(bookings) == 3, "the legs still hold something there"


def test_a_status_that_echoes_less_than_one_before_uncovers_nothing() -> None:
    bookings = booked(3)
    bookings.seen(3)
    bookings.seen(1)
    assert unseen_seqs(bookings) == []


@pytest.mark.parametrize("seen_first", [False, True])
def test_a_leg_that_ended_counts_nowhere_in_either_order(seen_first: bool) -> None:
    bookings = booked(2)
    if seen_first:
        bookings.seen(1)
    bookings.ended(key(1))
    bookings.ended(key(1))
    if not seen_first:
        bookings.seen(1)
    assert unseen_seqs(bookings) == [2]
    assert len(bookings) == 1


def test_an_answer_admitted_keeps_the_booking_and_settles_the_debt() -> None:
    bookings = booked(3)
    assert bookings.oldest_unanswered_s == 101.0
    bookings.admitted(key(1))
    assert bookings.oldest_unanswered_s == 102.0
    bookings.ended(key(2))  # Busy
    assert bookings.oldest_unanswered_s == 103.0
    bookings.admitted(key(3))
    assert bookings.oldest_unanswered_s is None
    assert len(bookings) == 2


def test_legs_of_one_request_are_told_apart_and_the_request_is_held_until_the_last() -> None:
    bookings = Bookings()
    for seq in (1, 2):
        bookings.add(booking(seq, "a"))
    bookings.add(booking(3, "b"))
    bookings.ended(key(1, "a", Leg.DECODE))  # another leg
    bookings.ended(key(1, "b"))  # another request
    assert len(bookings) == 3
    bookings.ended(key(1, "a"))
    assert bookings.holds(RequestId("a"))
    bookings.ended(key(2, "a"))
    assert not bookings.holds(RequestId("a"))
    assert bookings.holds(RequestId("b"))


def test_nothing_is_left_of_a_lost_session() -> None:
    bookings = booked(3)
    bookings.clear()
    assert (len(bookings), unseen_seqs(bookings)) == (0, [])
    assert bookings.oldest_unanswered_s is None
    assert not bookings.holds(RequestId("r"))


_OPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "admitted", "ended", "seen"]), st.integers(0, 12)),
    max_size=60,
)


@given(_OPS)
def test_what_counts_is_what_was_sent_less_what_ended_and_what_was_seen(
    ops: list[tuple[str, int]],
) -> None:
    bookings, num_sent, seen = Bookings(), 0, 0
    open_seqs: set[int] = set()
    unanswered: set[int] = set()
    for op, number in ops:
        if op == "add":
            num_sent += 1
            bookings.add(booking(num_sent))
            open_seqs.add(num_sent)
            unanswered.add(num_sent)
        elif op == "admitted":
            bookings.admitted(key(number))
            unanswered.discard(number)
        elif op == "ended":
            bookings.ended(key(number))
            open_seqs.discard(number)
            unanswered.discard(number)
        else:
            seen = max(seen, min(number, num_sent))
            bookings.seen(min(number, num_sent))
        expected = {seq for seq in open_seqs if seq > seen}
        assert sum(each.num_blocks for each in bookings.unseen()) == sum(2**n for n in expected)
        assert len(bookings) == len(open_seqs)
        assert bookings.holds(RequestId("r")) == bool(open_seqs)
        oldest = 100.0 + min(unanswered) if unanswered else None
        assert bookings.oldest_unanswered_s == oldest
