"""The batch format: what is a request, what is a result, whose fault a failure is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batch.lines import (
    BatchLine,
    LineResult,
    RefusedLine,
    decode_result,
    encode_result,
    parse_line,
)
from pdserve.errors import InvalidRequest, PeerUnreachable, all_errors

REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"prompt": "hello", "max_tokens": 3},
}


def line_of(**changes: object) -> BatchLine | RefusedLine:
    request = {key: value for key, value in {**REQUEST, **changes}.items() if value is not None}
    return parse_line(7, json.dumps(request).encode())


def test_a_request_keeps_its_body() -> None:
    line = line_of()
    assert isinstance(line, BatchLine)
    assert (line.number, line.custom_id, line.url) == (7, "a", "/v1/completions")
    assert json.loads(line.body) == REQUEST["body"]
    assert not line.wants_timing


def test_a_request_may_leave_out_its_method_and_ask_for_its_ledger() -> None:
    line = line_of(method=None, body={"prompt": "x", "pdserve_timing": True})
    assert isinstance(line, BatchLine)
    assert line.wants_timing


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"custom_id": None}, "custom_id: is required"),
        ({"custom_id": 7}, "custom_id: is required"),
        ({"custom_id": ""}, "custom_id: is required"),
        ({"method": "GET"}, "method: must be POST"),
        ({"url": "/v1/embeddings"}, "url: must be one of /v1/chat/completions"),
        ({"url": None}, "url: must be one of"),
        ({"url": ["/v1/completions"]}, "url: must be one of"),
        ({"body": None}, "body: must be an object"),
        ({"body": "hello"}, "body: must be an object"),
        ({"body": {"prompt": "x", "stream": True}}, "body.stream:"),
    ],
)
def test_what_is_no_request_is_refused_by_field(changes: dict[str, object], words: str) -> None:
    line = line_of(**changes)
    assert isinstance(line, RefusedLine)
    assert words in str(line.error)
    assert line.custom_id == (None if "custom_id" in changes else "a")


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"\xff\xfe{}", b"nothing", b"[" * 100_000, b'{"custom_id": "a"} x']
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    line = parse_line(1, raw)
    assert isinstance(line, RefusedLine)
    assert str(line.error).startswith("line: ")


def test_an_answer_as_openai_writes_it() -> None:
    result = LineResult(7, "a", 200, "req-1", {"id": "cmpl-1"})
    assert json.loads(encode_result(result)) == {
        "id": "batch_req_7",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req-1", "body": {"id": "cmpl-1"}},
        "error": None,
    }
    assert result.is_answer
    assert result.failure == ""


def test_an_error_as_openai_writes_it() -> None:
    result = LineResult.of_error(7, None, InvalidRequest("body", "must be an object"))
    assert json.loads(encode_result(result)) == {
        "id": "batch_req_7",
        "custom_id": None,
        "response": None,
        "error": {"code": "invalid_request", "message": "body: must be an object"},
    }


@given(
    st.builds(
        LineResult,
        number=st.integers(1, 10**9),
        custom_id=st.none() | st.text(),
        status=st.integers(100, 599),
        request_id=st.text(),
        body=st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.none()),
    )
    | st.builds(
        LineResult,
        number=st.integers(1, 10**9),
        custom_id=st.none() | st.text(),
        error_code=st.text(),
        error_message=st.text(),
    )
)
def test_results_are_read_as_they_were_written(result: LineResult) -> None:
    raw = encode_result(result)
    assert raw.count(b"\n") == 1
    assert decode_result(raw) == result


@pytest.mark.parametrize(
    "raw",
    [b"{}", b"[]", b"7", b"x", json.dumps(REQUEST).encode(),
     b'{"id": "batch_req_x", "custom_id": "a", "response": null, "error": {}}',
     b'{"id": "batch_req_1", "custom_id": "a", "response": null, "error": null}'],
)  # fmt: skip
def test_what_is_no_result_is_not_taken_for_one(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode_result(raw)


def test_whose_fault_a_failure_is_follows_the_tree_of_errors() -> None:
    for cls in all_errors().values():
        if issubclass(cls, InvalidRequest):
            continue
        error = cls.__new__(cls)
        result = LineResult(1, "a", cls.http_status, "", {"error": {"code": cls.code}})
        passes = cls.http_status >= 500 or cls.http_status in (429, 499)
        assert result.may_pass == passes, error
        assert result.failure == cls.code
    assert LineResult.of_error(1, "a", PeerUnreachable("gone")).may_pass
    assert not LineResult.of_error(1, "a", InvalidRequest("line", "bad")).may_pass
    assert not LineResult(1, "a", 200, "", {}).may_pass


@pytest.mark.parametrize("body", [None, [], {"error": "text"}, {"error": {"code": None}}])
def test_a_refusal_without_a_code_is_counted_by_its_status(body: object) -> None:
    assert LineResult(1, "a", 418, "", body).failure == "status 418"
