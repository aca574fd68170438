"""Typed reading of key-value documents from outside: config.json, GGUF metadata.

Every complaint names the document and the field. It does not know which fields exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdserve.errors import ModelFileError


def read_json_object(path: Path) -> dict[str, Any]:
    """Raises ModelFileError when the file is absent, not JSON or not an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: missing") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path}: must be a JSON object")
    return document


class FieldReader:
    """Fields of one document. A field that is absent or null takes the default if there is one."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self.values = values

    def error(self, name: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.where}: field {name}: {problem}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def positive_int(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.error(name, f"{value!r} is not a positive whole number")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(name, f"{value!r} is not a whole number from 0 up")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"{value!r} is not a number")
        if not math.isfinite(value) or value <= 0:
            raise self.error(name, f"{value!r} is not positive and finite")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"{value!r} is not true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, f"{value!r} is not text")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty when absent or null."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise self.error(name, f"{value!r} is not a token id or a list of token ids")
        return tuple(ids)

    def token_id(self, name: str) -> int | None:
        ids = self.token_ids(name)
        if len(ids) > 1:
            raise self.error(name, f"{list(ids)!r} is not one token id")
        return ids[0] if ids else None

    def refuse_unless(self, allowed: Mapping[str, tuple[object, ...]], reason: str) -> None:
        """Refuse every field of ``allowed`` that is present, not null and has another value."""
        for name, values in allowed.items():
            value = self.values.get(name)
            if value is not None and value not in values:
                raise self.error(name, f"{shorten(value)} {reason}")

    def _value(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.error(name, "missing")
        return default


def shorten(value: object, limit: int = 80) -> str:
    """``repr`` for an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
