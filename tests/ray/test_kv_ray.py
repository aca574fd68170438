"""KV through Ray's object store: the suites of all transports, and what only this one has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from integration import test_kv_faults, test_kv_read, test_kv_transports

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def over_ray(suite: ModuleType) -> Iterator[tuple[str, Any]]:
    """The tests of a module that take a transport, with this one instead of theirs."""
    for name, test in vars(suite).items():
        if name.startswith("test_") and "transport" in inspect.signature(test).parameters:
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            copy = FunctionType(test.__code__, test.__globals__, name)
            copy.__annotations__ = test.__annotations__
            copy.pytestmark = [  # type: ignore[attr-defined]
                *(mark for mark in marks if mark.args[0] != "transport"),
                pytest.mark.parametrize("transport", ["ray"]).mark,
            ]
            yield name, copy


for each in (test_kv_transports, test_kv_read, test_kv_faults):
    globals().update(over_ray(each))
