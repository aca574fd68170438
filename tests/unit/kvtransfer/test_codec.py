import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.codec import decode, encode
from kvtransfer.envelope import seal, unseal
from kvtransfer.messages import (
    Accept,
    Ack,
    Alive,
    Commit,
    Credit,
    Finished,
    FirstTokenInfo,
    Frame,
    KvMessage,
    Nack,
    Open,
    Probe,
    Ready,
    Refused,
)
from pdserve.errors import FrameCorrupt, UnknownMessage
from pdserve.types import KVLayout, TicketId, TokenLogprobs, WorkerId

COUNTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(max_size=20)
TICKETS = TEXTS.map(TicketId)
LAYOUTS = st.builds(
    KVLayout, COUNTS, COUNTS, COUNTS, COUNTS, TEXTS, first_kv_head=COUNTS, order=TEXTS
)
LOGPROB = st.floats(max_value=0.0, allow_nan=False)
LOGPROBS = st.none() | st.builds(
    TokenLogprobs, LOGPROB, st.lists(st.tuples(COUNTS, LOGPROB), max_size=3).map(tuple)
)
FIRSTS = st.builds(FirstTokenInfo, COUNTS, COUNTS, LOGPROBS)
PIECES = st.lists(st.binary(max_size=40).map(memoryview), min_size=1, max_size=3).map(tuple)
MESSAGES = st.one_of(
    st.builds(Open, TICKETS, COUNTS, TEXTS.map(WorkerId), TEXTS, LAYOUTS),
    st.builds(Ready, COUNTS),
    st.builds(Accept, COUNTS, COUNTS, st.booleans()),
    st.builds(
        Frame,
        TICKETS,
        *([COUNTS] * 8),
        dtype=TEXTS,
        xxh3=st.integers(0, 2**64 - 1),
        pieces=PIECES,
        block_ids=st.lists(COUNTS, max_size=3).map(tuple),
    ),
    st.builds(Commit, TICKETS, COUNTS, COUNTS, COUNTS, st.binary(min_size=16, max_size=16), FIRSTS),
    st.just(Ack()),
    st.just(Alive()),
    st.builds(Nack, TEXTS, TEXTS),
    st.builds(Credit, COUNTS),
    st.builds(Refused, TEXTS, TEXTS),
    st.just(Finished()),
    st.builds(Probe, COUNTS, TEXTS.map(WorkerId), TEXTS),
)

LAYOUT = KVLayout(2, 1, 4, 4, "float32")
EXAMPLES: list[KvMessage] = [
    Open(TicketId("t"), 1, WorkerId("w"), "i", LAYOUT),
    Ready(5),
    Accept(0, 100),
    Frame(TicketId("t"), 1, 0, 0, 4, 0, 2, 0, 1, "float32", 9, (memoryview(b"abcd"),)),
    Commit(
        TicketId("t"), 1, 1, 4, b"d" * 16, FirstTokenInfo(0, 7, TokenLogprobs(-1.0, ((7, -1.0),)))
    ),
    Nack("frame_corrupt", "why"),
    Credit(4),
    Refused("ticket_unknown", "why"),
]
FIELDS = [
    (message, name) for message in EXAMPLES for name in unseal(encode(message)).fields
]  # fmt: skip


def joined(message: KvMessage) -> KvMessage:
    """A frame's payload in one piece, as it arrives; none if it only names blocks."""
    if not isinstance(message, Frame):
        return message
    if message.block_ids and not message.payload_len:
        return dataclasses.replace(message, pieces=())
    return dataclasses.replace(message, pieces=(memoryview(b"".join(message.pieces)),))


def resealed(message: KvMessage, **changes: Any) -> bytes:
    """The message's bytes with some header fields changed; ``...`` drops one."""
    envelope = unseal(encode(message))
    fields = {**envelope.fields, **changes}
    kept = {name: value for name, value in fields.items() if value is not ...}
    return seal(envelope.type_number, kept, (envelope.payload,))


@given(MESSAGES)
def test_every_message_survives(message: KvMessage) -> None:
    assert decode(encode(message)) == joined(message)


def test_type_numbers_are_those_of_the_protocol() -> None:
    numbers = {type(m).__name__: encode(m)[3] for m in [*EXAMPLES, Ack(), Finished()]}
    assert numbers == {
        "Open": 1, "Ready": 2, "Accept": 3, "Frame": 4, "Commit": 5,
        "Ack": 6, "Nack": 7, "Credit": 8, "Refused": 9, "Finished": 10,
    }  # fmt: skip


@pytest.mark.parametrize(("message", "name"), FIELDS)
def test_a_missing_field_is_named(message: KvMessage, name: str) -> None:
    with pytest.raises(FrameCorrupt, match=f"{type(message).__name__} lacks field {name}"):
        decode(resealed(message, **{name: ...}))


@pytest.mark.parametrize(("message", "name"), FIELDS)
@pytest.mark.parametrize("value", [-1, True, 1.5, ["x"], {"x": 1}, b"x"])
def test_a_field_of_a_wrong_type_is_named(message: KvMessage, name: str, value: Any) -> None:
    if name == "in_place" and value is True:
        value = 1
    with pytest.raises(FrameCorrupt, match=rf"{type(message).__name__}\.{name}"):
        decode(resealed(message, **{name: value}))


@pytest.mark.parametrize("message", [*EXAMPLES, Ack(), Finished()])
def test_an_unknown_field_is_named(message: KvMessage) -> None:
    with pytest.raises(FrameCorrupt, match=r"unknown fields \['surplus'\]"):
        decode(resealed(message, surplus=1))


@pytest.mark.parametrize("message", [*EXAMPLES, Ack(), Finished()])
def test_trailing_bytes_are_refused(message: KvMessage) -> None:
    with pytest.raises(FrameCorrupt, match="bytes"):
        decode(encode(message) + b"x")


def test_a_layout_field_is_named() -> None:
    layout = {**dataclasses.asdict(LAYOUT), "head_dim": "4"}
    with pytest.raises(FrameCorrupt, match=r"Open\.layout\.head_dim"):
        decode(resealed(EXAMPLES[0], layout=layout))


@pytest.mark.parametrize(
    "logprobs", [[], [-1.0], [-1, []], [-1.0, [[1]]], [-1.0, [[True, -1.0]]], [-1.0, [[-1, -1.0]]]]
)
def test_malformed_logprobs_are_refused(logprobs: list[Any]) -> None:
    with pytest.raises(FrameCorrupt, match="logprobs"):
        decode(resealed(EXAMPLES[4], logprobs=logprobs))


@pytest.mark.parametrize("number", [0, 13, 255])
def test_an_unknown_type_is_named(number: int) -> None:
    with pytest.raises(UnknownMessage, match=f"type {number}"):
        decode(seal(number, {}))


def test_a_received_payload_is_not_copied() -> None:
    data = encode(EXAMPLES[3])
    frame = decode(data)
    assert isinstance(frame, Frame)
    assert frame.pieces[0].obj is data
