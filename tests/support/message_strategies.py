"""Hypothesis strategies for every message of a worker's session.

Built from the type hints of the dataclasses, so that a new field or a new member of a union is
drawn without a change here. Field names decide the range where a hint says only ``int``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, NewType

from hypothesis import strategies as st

from pdserve.messages import FromWorker, ToWorker
from pdserve.types import Request, SamplingParams

TOKEN_ID = st.integers(0, 2**32 - 1)
COUNT = st.integers(0, 2**32 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBER = st.floats(allow_nan=False)
FINITE = st.floats(-1e9, 1e9)


def _tuples(item: st.SearchStrategy[Any], min_size: int = 0) -> st.SearchStrategy[Any]:
    return st.lists(item, min_size=min_size, max_size=4).map(tuple)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(100, 2**31 - 1),
    min_tokens=st.integers(0, 100),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 10, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=_tuples(st.tuples(TOKEN_ID, st.floats(-100, 100))),
    seed=st.integers(0, 2**63 - 1),
    stop_token_ids=_tuples(TOKEN_ID),
    ignore_eos=st.booleans(),
    num_logprobs=st.none() | st.integers(0, 20),
)
REQUEST = st.builds(
    Request,
    request_id=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=128),
    prompt_ids=_tuples(TOKEN_ID, min_size=1),
    sampling=SAMPLING,
    priority=st.integers(-(2**63), 2**63 - 1),
    deadline_s=st.none() | FINITE,
    cache_salt=TEXT,
)


def strategy_of(hint: Any) -> st.SearchStrategy[Any]:
    known: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXT,
        int: COUNT,
        float: NUMBER,
        bool: st.booleans(),
        bytes: st.binary(max_size=4).map(lambda data: data * 8),
        type(None): st.none(),
        SamplingParams: SAMPLING,
        Request: REQUEST,
    }
    if hint in known:
        return known[hint]
    if isinstance(hint, NewType):
        return strategy_of(hint.__supertype__)
    if isinstance(hint, types.UnionType):
        return st.one_of([strategy_of(member) for member in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        members = typing.get_args(hint)
        if members[-1] is Ellipsis:
            return _tuples(strategy_of(members[0]))
        return st.tuples(*[strategy_of(member) for member in members])
    if isinstance(hint, type) and issubclass(hint, str):
        return st.sampled_from(hint)  # type: ignore[call-overload, no-any-return]
    return _of_dataclass(hint)


def _of_dataclass(cls: Callable[..., Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: strategy_of(hint) for name, hint in hints.items()})


def from_worker() -> st.SearchStrategy[FromWorker]:
    return strategy_of(FromWorker)


def to_worker() -> st.SearchStrategy[ToWorker]:
    return strategy_of(ToWorker)
