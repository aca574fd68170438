"""The order of the queue, its bound, and what is refused at the door."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import InvalidRequest, Overloaded
from pdserve.types import ModelInfo, Request, RequestId, SamplingParams
from router import admission
from router.admission import PrefillSpeed, estimated_wait_s
from router.request_queue import RequestQueue, order_key


@dataclass(frozen=True)
class Item:
    arrival: int
    was_dispatched: bool = False
    priority: int = 0
    deadline_s: float | None = None
    num_prompt_tokens: int = 3
    tenant: str = ""
    service_tokens: float = 10.0


def test_order_dispatched_then_priority_then_deadline_then_arrival() -> None:
    expected = [
        Item(9, was_dispatched=True, priority=7),
        Item(7, priority=-1),
        Item(5, deadline_s=10.0),
        Item(4, deadline_s=20.0),
        Item(2),
        Item(3),
        Item(1, priority=1, deadline_s=1.0),
    ]
    queue: RequestQueue[Item] = RequestQueue(max_len=10)
    for item in sorted(expected, key=lambda item: item.arrival):
        queue.add(item, retry_after_s=1.0)
    assert list(queue) == expected


def test_full_queue_refuses_arrivals_but_takes_back_what_was_dispatched() -> None:
    queue: RequestQueue[Item] = RequestQueue(max_len=2)
    queue.add(Item(1), 1.0)
    queue.add(Item(2), 1.0)
    with pytest.raises(Overloaded, match="2 requests") as caught:
        queue.add(Item(3), retry_after_s=4.5)
    assert caught.value.retry_after_s == 4.5
    queue.put_back(Item(4, was_dispatched=True))
    assert len(queue) == 3
    assert queue.num_prompt_tokens == 9


def test_what_is_removed_while_iterating_is_left_out() -> None:
    queue: RequestQueue[Item] = RequestQueue(max_len=5)
    items = [Item(i) for i in range(4)]
    for item in items:
        queue.put_back(item)
    seen = []
    for item in queue:
        seen.append(item)
        if item is items[0]:
            queue.remove(items[0])
            queue.remove(items[2])
    assert seen == [items[0], items[1], items[3]]


@given(
    st.lists(
        st.builds(
            Item,
            arrival=st.integers(0, 10_000),
            was_dispatched=st.booleans(),
            priority=st.integers(-2, 2),
            deadline_s=st.none() | st.floats(0, 5),
        ),
        unique_by=lambda item: item.arrival,
    ),
    st.randoms(use_true_random=False),
)
def test_queue_is_a_sorted_list(items: list[Item], random: object) -> None:
    queue: RequestQueue[Item] = RequestQueue(max_len=1)
    for item in items:
        queue.put_back(item)
    gone = {item for item in items if random.random() < 0.5}  # type: ignore[attr-defined]
    for item in gone:
        queue.remove(item)
    left = sorted((item for item in items if item not in gone), key=order_key)
    assert list(queue) == left
    assert queue.num_prompt_tokens == 3 * len(left)
    assert all(item in queue for item in left)
    assert not any(item in queue for item in gone)


MODEL = ModelInfo("m", "f", vocab_size=100, max_model_len=20)


def request(
    prompt_ids: tuple[int, ...] = (1, 2, 3), max_tokens: int = 4, **sampling: object
) -> Request:
    params = SamplingParams(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Request(RequestId("r"), prompt_ids, params)


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        (request((1, 100)), "prompt", "100 is not in \\[0, 99\\]"),
        (request((1, -1)), "prompt", "-1 is not in"),
        (request(stop_token_ids=(100,)), "stop_token_ids", "100"),
        (request(logit_bias=((100, 1.0),)), "logit_bias", "100"),
        (request(max_tokens=18), "max_tokens", "3 prompt tokens and 18 .* of 20 tokens"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(bad: Request, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        admission.check_model(bad, MODEL)
    assert caught.value.field == field


def test_what_just_fits_is_taken() -> None:
    admission.check_model(request((0, 99), max_tokens=18, logit_bias=((99, 1.0),)), MODEL)


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    with_deadline = replace(request(), deadline_s=105.0)
    admission.check_deadline(with_deadline, 100.0, wait_s=5.0)
    admission.check_deadline(with_deadline, 100.0, wait_s=None)
    admission.check_deadline(request(), 100.0, wait_s=500.0)
    with pytest.raises(Overloaded, match="deadline is in 5.0 s") as caught:
        admission.check_deadline(with_deadline, 100.0, wait_s=12.0)
    assert caught.value.retry_after_s == 7.0


def test_speed_is_smoothed_and_unknown_at_first() -> None:
    speed = PrefillSpeed()
    assert speed.tokens_per_s is None
    assert estimated_wait_s(1000, 2, speed.tokens_per_s) is None
    speed.observe(100, 0.0)  # nothing was computed
    assert speed.tokens_per_s is None
    speed.observe(100, 1.0)
    assert speed.tokens_per_s == 100.0
    assert estimated_wait_s(1000, 2, speed.tokens_per_s) == 5.0
    for _ in range(200):
        speed.observe(400, 2.0)
    assert speed.tokens_per_s == pytest.approx(200.0)


def test_retry_after_has_bounds() -> None:
    assert admission.retry_after_s(None) == 1.0
    assert admission.retry_after_s(0.01) == 1.0
    assert admission.retry_after_s(7.0) == 7.0
    assert admission.retry_after_s(1e9) == 60.0
