"""Events of a report: tokens of a sequence together, of each request what was said, in order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pdserve.messages import (
    Admitted,
    AlreadyCommitted,
    Busy,
    Committed,
    Ended,
    Failed,
    FirstToken,
    KvFailed,
    Met,
    Tokens,
    WorkerEvent,
)
from pdserve.report_outbox import ReportOutbox
from pdserve.types import (
    DecodeTiming,
    KvTiming,
    Leg,
    PrefillTiming,
    RequestId,
    TicketId,
    TokenEvent,
    WorkerId,
)


def tokens(request: str, *indices: int, epoch: int = 1, timed: bool = False) -> Tokens:
    events = tuple(TokenEvent(RequestId(request), epoch, index, 7) for index in indices)
    return Tokens(events, DecodeTiming(0.5, 0.25) if timed else None)


def taken(*events: WorkerEvent) -> tuple[WorkerEvent, ...]:
    outbox = ReportOutbox()
    for event in events:
        outbox.add(event)
    return outbox.take()


def test_tokens_of_a_sequence_go_together() -> None:
    ended = Ended(RequestId("a"), 1, Leg.DECODE)
    events = (tokens("a", 1), tokens("b", 3), tokens("a", 2, 3), tokens("b", 4), ended)
    assert taken(*events) == (tokens("a", 1, 2, 3), tokens("b", 3, 4), ended)


def test_a_timing_stays_with_its_token() -> None:
    events = (tokens("a", 0), tokens("a", 1, timed=True), tokens("a", 2))
    assert taken(*events) == (tokens("a", 0), tokens("a", 1, 2, timed=True))


def test_tokens_do_not_overtake_what_was_said_of_their_request() -> None:
    again = AlreadyCommitted(RequestId("a"), 2, 1)
    events = (tokens("a", 1), again, tokens("a", 2), tokens("a", 3))
    assert taken(*events) == (tokens("a", 1), again, tokens("a", 2, 3))


def test_epochs_stay_apart() -> None:
    assert taken(tokens("a", 1), tokens("a", 1, epoch=2)) == (
        tokens("a", 1),
        tokens("a", 1, epoch=2),
    )


def test_what_was_taken_does_not_grow() -> None:
    outbox = ReportOutbox()
    outbox.add(tokens("a", 1))
    first = outbox.take()
    outbox.add(tokens("a", 2))
    assert (first, outbox.take(), outbox.take()) == ((tokens("a", 1),), (tokens("a", 2),), ())


def others(request: RequestId) -> tuple[WorkerEvent, ...]:
    return (
        Admitted(request, 1, Leg.DECODE),
        Busy(request, 1, Leg.DECODE, 3),
        FirstToken(TokenEvent(request, 1, 0, 5), PrefillTiming()),
        Committed(request, TicketId("t"), 1, KvTiming()),
        KvFailed(request, TicketId("t"), 1, "x", ""),
        Failed(request, 1, Leg.DECODE, "x", ""),
        AlreadyCommitted(request, 2, 1),
        Ended(request, 1, Leg.DECODE),
    )


EVENTS = st.one_of(
    st.builds(
        lambda request, first, count, epoch, timed: tokens(
            request, *range(first, first + count), epoch=epoch, timed=timed
        ),
        st.sampled_from("abc"), st.integers(0, 30), st.integers(1, 3), st.integers(1, 2),
        st.booleans(),
    ),
    st.sampled_from("abc").flatmap(lambda name: st.sampled_from(others(RequestId(name)))),
    st.just(Met(WorkerId("p"), "i", "shm")),
)  # fmt: skip


def request_of(event: WorkerEvent) -> str:
    match event:
        case Tokens(of):
            return of[0].request_id
        case FirstToken(token):
            return token.request_id
        case Met():
            return ""
        case _:
            return event.request_id


def apart(event: WorkerEvent) -> list[WorkerEvent]:
    """One event a token, the timing with the first."""
    if not isinstance(event, Tokens):
        return [event]
    single = [Tokens((token,)) for token in event.tokens]
    return [replace(single[0], timing=event.timing), *single[1:]]


@given(st.lists(EVENTS, max_size=40))
def test_of_each_request_everything_is_said_in_order(events: list[WorkerEvent]) -> None:
    """Beside the plain way: every event for itself."""
    together = taken(*events)
    for name in ("a", "b", "c", ""):
        plain = [part for e in events if request_of(e) == name for part in apart(e)]
        assert [part for e in together if request_of(e) == name for part in apart(e)] == plain
