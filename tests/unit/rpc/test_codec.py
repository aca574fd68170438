"""Messages of a session survive their bytes, and bytes that are no message are told by name."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdserve.clock import ManualClock
from pdserve.errors import ProtocolError, UnknownMessage
from pdserve.messages import (
    Drain,
    FirstToken,
    FromWorker,
    StepReport,
    Submit,
    Tokens,
    ToWorker,
    WorkerEvent,
)
from pdserve.rpc.codec import (
    decode_from_worker,
    decode_to_worker,
    encode_from_worker,
    encode_to_worker,
)
from pdserve.types import (
    Attempt,
    DecodeTiming,
    FinishReason,
    Leg,
    PrefillTiming,
    Request,
    RequestId,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
    WorkerStatus,
)
from pdserve.v1 import worker_service_pb2 as pb
from support.message_strategies import from_worker, strategy_of, to_worker

CLOCK = ManualClock()  # stands at 0, where time left and deadline are the same number


def _submit(deadline_s: float | None = None) -> Submit:
    request = Request(RequestId("r"), (1, 2), SamplingParams(), deadline_s=deadline_s)
    return Submit(1, Leg.COLOCATED, Attempt(request, 1), None)


@given(from_worker())
@settings(max_examples=300, deadline=None)
def test_every_message_of_a_worker_survives(message: FromWorker) -> None:
    assert decode_from_worker(encode_from_worker(message)) == message


@given(to_worker())
@settings(max_examples=300, deadline=None)
def test_every_message_of_a_router_survives(message: ToWorker) -> None:
    assert decode_to_worker(encode_to_worker(message, CLOCK), CLOCK) == message


@pytest.mark.parametrize("event_class", typing.get_args(WorkerEvent), ids=lambda cls: cls.__name__)
def test_every_event_has_bytes(event_class: type) -> None:
    @given(strategy_of(event_class))
    @settings(max_examples=30, deadline=None)
    def survives(event: WorkerEvent) -> None:
        report = StepReport((event,), WorkerStatus())
        assert decode_from_worker(encode_from_worker(report)) == report

    survives()


def test_absent_and_zero_are_told_apart() -> None:
    token = TokenEvent(RequestId("r"), 1, 0, 0, FinishReason.STOP, TokenLogprobs(0.0))
    bare = TokenEvent(RequestId("r"), 1, 0, 0)
    report = StepReport(
        (
            FirstToken(token, PrefillTiming()),
            Tokens((token, bare), DecodeTiming()),
            Tokens((bare,), None),
        ),
        WorkerStatus(),
    )
    assert decode_from_worker(encode_from_worker(report)) == report


def test_a_deadline_crosses_as_time_left() -> None:
    router, worker = ManualClock(100.0), ManualClock(7000.0)
    received = decode_to_worker(encode_to_worker(_submit(deadline_s=130.0), router), worker)
    assert isinstance(received, Submit)
    assert received.attempt.request.deadline_s == 7030.0


def test_a_deadline_that_has_passed_stays_passed() -> None:
    router, worker = ManualClock(100.0), ManualClock(7000.0)
    received = decode_to_worker(encode_to_worker(_submit(deadline_s=99.0), router), worker)
    assert isinstance(received, Submit)
    assert received.attempt.request.deadline_s == 6999.0


@pytest.mark.parametrize("decode", [decode_from_worker, lambda data: decode_to_worker(data, CLOCK)])
@pytest.mark.parametrize("data", [b"\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x05ab"])
def test_bytes_that_are_no_protobuf(decode: typing.Any, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="Worker: "):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\xfa\x01\x01a"])
def test_an_unknown_message_is_told(data: bytes) -> None:
    """Nothing in the union, or a field number of a later version."""
    with pytest.raises(UnknownMessage):
        decode_from_worker(data)
    with pytest.raises(UnknownMessage):
        decode_to_worker(data, CLOCK)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    for decode in (decode_from_worker, lambda it: decode_to_worker(it, CLOCK)):
        try:
            decode(data)
        except ProtocolError:
            continue


@given(to_worker(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_is_a_message_or_a_protocol_error(
    message: ToWorker, data: st.DataObject
) -> None:
    good = bytearray(encode_to_worker(message, CLOCK))
    if not good:
        return
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] ^= data.draw(st.integers(1, 255))
    try:
        decode_to_worker(bytes(good), CLOCK)
    except ProtocolError:
        return


def _hello(**missing: object) -> bytes:
    fields = {"role": pb.Hello.DESCRIPTOR.fields_by_name["role"].enum_type.values[1].number}
    hello = pb.Hello(protocol_version=1, worker_id="w", **fields)
    hello.layout.SetInParent()
    hello.limits.SetInParent()
    for name, value in missing.items():
        if value is None:
            hello.ClearField(name)
        else:
            setattr(hello, name, value)
    return pb.FromWorker(hello=hello).SerializeToString()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (_hello(layout=None), "Hello.layout: missing"),
        (_hello(limits=None), "Hello.limits: missing"),
        (_hello(role=0), "Hello.role: unknown value 0"),
        (_hello(role=77), "Hello.role: unknown value 77"),
        (
            pb.FromWorker(step_report=pb.StepReport()).SerializeToString(),
            "StepReport.status: missing",
        ),
    ],
)
def test_what_is_missing_or_unknown_is_named(data: bytes, field: str) -> None:
    with pytest.raises(ProtocolError, match=field):
        decode_from_worker(data)


def test_an_unknown_event_is_told() -> None:
    report = pb.StepReport(events=[pb.WorkerEvent()])
    report.status.SetInParent()
    with pytest.raises(UnknownMessage, match="WorkerEvent"):
        decode_from_worker(pb.FromWorker(step_report=report).SerializeToString())


def test_a_submit_the_types_refuse_is_the_routers_fault() -> None:
    union = pb.ToWorker.FromString(encode_to_worker(_submit(), CLOCK))
    union.submit.attempt.request.sampling.top_p = 7
    with pytest.raises(ProtocolError, match="Attempt.request: top_p"):
        decode_to_worker(union.SerializeToString(), CLOCK)


def test_the_messages_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        decode_to_worker(encode_to_worker(Drain(1.0), CLOCK), CLOCK).grace_s = 2.0  # type: ignore
