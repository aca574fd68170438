"""One raw value (text, or a TOML value) as the kind its option wants, or a refusal that names all.

Does not know where values are looked for (pdserve/config.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from pdserve.errors import ConfigError

SCALARS = (str, int, float, bool, Path)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}


class Limits(Protocol):
    """What of an option is checked here. Bounds are inclusive."""

    @property
    def unit(self) -> str: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def choices(self) -> tuple[str, ...]: ...


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def checked_value(
    name: str, kind: type, repeatable: bool, limits: Limits, raw: Any, origin: str
) -> Any:
    """Raises ConfigError: ``raw`` is of a wrong kind or out of bounds; names option and origin."""

    def refuse(problem: str) -> ConfigError:
        return ConfigError(f"{name} {problem}, not {raw!r} (from {origin})")

    if repeatable:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise refuse("must be a list of texts")
        return tuple(item.strip() for item in raw if item.strip())
    value = _converted(kind, raw)
    if value is None:
        raise refuse(f"must be {_KIND_WORDS[kind]}")
    if limits.choices and value not in limits.choices:
        text = str(value)
        raise refuse(f"must be one of {', '.join(limits.choices)}{nearest(text, limits.choices)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = f" {limits.unit}" if limits.unit else ""
        if limits.low is not None and value < limits.low:
            raise refuse(f"must be at least {limits.low:g}{unit}")
        if limits.high is not None and value > limits.high:
            raise refuse(f"must be at most {limits.high:g}{unit}")
    return value


def _converted(kind: type, raw: Any) -> Any:
    """``raw`` as ``kind``; None if it is not one."""
    if kind is bool:
        if isinstance(raw, str):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(raw.lower())
        return raw if isinstance(raw, bool) else None
    if kind in (str, Path):
        return kind(raw) if isinstance(raw, str) else None
    if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
        return None
    try:
        number = kind(raw)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
