"""Errors and the ledger survive a gRPC status; foreign statuses become the nearest class."""

from __future__ import annotations

import dataclasses

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdserve.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PdserveError,
    ProtocolError,
    RequestCancelled,
    ServiceError,
    UnknownModel,
    all_errors,
)
from pdserve.request_timing import RequestTiming
from pdserve.rpc import status


def _error_of(cls: type[PdserveError]) -> PdserveError:
    if issubclass(cls, InvalidRequest):
        return cls("top_p", "must lie in (0, 1]")
    if issubclass(cls, Overloaded):
        return cls("queue is full", 0.25)
    return cls("what happened")


def _back(error: PdserveError) -> PdserveError:
    return status.error_from_status(
        status.status_code(error), status.details(error), status.error_metadata(error)
    )


@pytest.mark.parametrize("cls", all_errors().values(), ids=lambda cls: cls.__name__)
def test_every_class_survives(cls: type[PdserveError]) -> None:
    error = _error_of(cls)
    back = _back(error)
    assert type(back) is cls
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("cls", all_errors().values(), ids=lambda cls: cls.__name__)
def test_every_class_names_a_grpc_code(cls: type[PdserveError]) -> None:
    assert status.status_code(_error_of(cls)) is not grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, UnknownModel),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, PayloadTooLarge),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, RequestCancelled),
        (grpc.StatusCode.UNAVAILABLE, ServiceError),
        (grpc.StatusCode.UNIMPLEMENTED, ProtocolError),
        (grpc.StatusCode.INTERNAL, PdserveError),
        (grpc.StatusCode.UNKNOWN, PdserveError),
    ],
)
@pytest.mark.parametrize("metadata", [(), (("pdserve-error-code", "of_a_later_version"),)])
def test_a_status_of_others_becomes_the_class_of_its_code(
    code: grpc.StatusCode, cls: type[PdserveError], metadata: status.Metadata
) -> None:
    error = status.error_from_status(code, "text", metadata)
    assert type(error) is cls
    assert "text" in str(error)


def test_an_error_without_text_is_named() -> None:
    assert status.details(DeadlineExceeded()) == "deadline_exceeded"


def test_long_texts_are_cut() -> None:
    text = status.details(UnknownModel("x" * 100_000))
    assert len(text) <= 2000 and text.endswith("…")


@given(st.text(max_size=300))
def test_metadata_is_printable_ascii_whatever_the_field_is_called(field: str) -> None:
    for _, value in status.error_metadata(InvalidRequest(field, "is odd")):
        assert value.isascii() and value.isprintable()


TIMINGS = st.builds(
    RequestTiming,
    **{
        field.name: {
            "float": st.floats(0, 1e6),
            "int": st.integers(0, 2**62),
            "str": st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
        }[str(field.type)]
        for field in dataclasses.fields(RequestTiming)
    },
)


@given(TIMINGS)
@settings(deadline=None)
def test_the_ledger_survives(timing: RequestTiming) -> None:
    ((_, text),) = metadata = status.timing_metadata(timing)
    assert text.isascii()
    assert status.timing_from_metadata(metadata) == timing


def test_a_ledger_of_a_later_version_is_read_as_far_as_known() -> None:
    metadata = (("pdserve-timing", '{"queue_s": 0.5, "astrology_s": 1}'),)
    assert status.timing_from_metadata(metadata) == RequestTiming(queue_s=0.5)
    assert status.timing_from_metadata(()) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_what_is_no_ledger_is_told(text: str) -> None:
    with pytest.raises(ProtocolError, match="pdserve-timing"):
        status.timing_from_metadata((("pdserve-timing", text),))


def test_binary_metadata_is_left_out() -> None:
    assert status.plain_metadata([("a", "1"), ("b-bin", b"2")]) == (("a", "1"),)
    assert status.plain_metadata(None) == ()
