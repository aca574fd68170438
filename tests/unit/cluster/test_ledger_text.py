"""The KV line of a ledger."""

from __future__ import annotations

from cluster.ledger_text import kv_line
from pdserve.request_timing import RequestTiming


def test_what_was_passed_over_is_said() -> None:
    timing = RequestTiming(
        kv_bytes=4096, kv_tokens=8, kv_transport="grpc", kv_coding="int8", kv_passed_over="shm,tcp",
        prefill_worker="p", decode_worker="d",
    )  # fmt: skip
    assert "(8 tokens, grpc as int8, not shm,tcp, " in kv_line(timing)


def test_nothing_is_said_of_the_first_choice() -> None:
    timing = RequestTiming(kv_bytes=4096, kv_tokens=8, kv_transport="shm")
    assert "(8 tokens, shm, " in kv_line(timing)
