"""Ledgers are kept for the latest requests only, and found by the ids people have."""

from __future__ import annotations

import pytest

from pdserve.errors import UnknownRequest
from pdserve.public import RequestRecord
from pdserve.request_timing import RequestTiming
from router.recent_requests import RecentRequests


def record(request_id: str, outcome: str = "stop") -> RequestRecord:
    return RequestRecord(request_id, outcome, RequestTiming())


def kept(*request_ids: str, max_requests: int = 10) -> RecentRequests:
    recent = RecentRequests(max_requests)
    for request_id in request_ids:
        recent.add(record(request_id))
    return recent


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("req-1", "req-1"),
        ("chatcmpl-req-1", "req-1"),
        ("cmpl-mine-0a1b", "mine-0a1b"),
        ("mine", "mine-2c3d"),  # as X-Request-ID: the newest of that name
        ("list", "list-1"),
        ("last", "list-1"),
    ],
)
def test_a_request_is_found_by_its_names(wanted: str, found: str) -> None:
    recent = kept("req-1", "req-10", "mine-0a1b", "mine-2c3d", "list-0", "list-1")
    assert recent.find(wanted).request_id == found


@pytest.mark.parametrize("wanted", ["req", "req-2", "", "mine-0a1"])
def test_a_part_of_a_name_is_none(wanted: str) -> None:
    recent = kept("req1", "mine-0a1b")
    with pytest.raises(UnknownRequest, match="2 latest"):
        recent.find(wanted)


def test_the_oldest_go_first_and_none_is_kept_twice() -> None:
    recent = kept("a", "b", "c", max_requests=2)
    assert len(recent) == 2
    with pytest.raises(UnknownRequest):
        recent.find("a")
    recent.add(record("b", "cancelled"))
    assert len(recent) == 2
    assert recent.find("last") == record("b", "cancelled")


def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    recent = kept("a", max_requests=0)
    assert len(recent) == 0
    with pytest.raises(UnknownRequest):
        recent.find("last")
