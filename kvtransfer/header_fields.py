"""Reading a message header field by field, strictly.

Each getter takes one field out and checks its type and range; ``finish`` refuses what is left.
Knows no message (codec.py does).
"""

from __future__ import annotations

from typing import Any

from pdserve.errors import FrameCorrupt

MAX_COUNT = 2**63 - 1
MAX_CHECKSUM = 2**64 - 1


class HeaderFields:
    """The fields of one header (or of a map in it). Every refusal is a FrameCorrupt by name."""

    def __init__(self, message: str, fields: dict[str, Any]) -> None:
        self._message = message
        self._left = dict(fields)

    def count(self, name: str, high: int = MAX_COUNT) -> int:
        value = self._pop(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
            raise self.refusal(name, "a whole number from 0", value)
        return value

    def flag(self, name: str) -> bool:
        value = self._pop(name)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false", value)
        return value

    def counts(self, name: str) -> tuple[int, ...]:
        value = self._pop(name)
        if not isinstance(value, list) or not all(
            type(each) is int and each >= 0 for each in value
        ):
            raise self.refusal(name, "a list of whole numbers from 0", value)
        return tuple(value)

    def text(self, name: str) -> str:
        value = self._pop(name)
        if not isinstance(value, str):
            raise self.refusal(name, "text", value)
        return value

    def blob(self, name: str, length: int) -> bytes:
        value = self._pop(name)
        if not isinstance(value, bytes) or len(value) != length:
            raise self.refusal(name, f"{length} bytes", value)
        return value

    def anything(self, name: str) -> Any:
        return self._pop(name)

    def submap(self, name: str) -> HeaderFields:
        value = self._pop(name)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self.refusal(name, "a map", value)
        return HeaderFields(f"{self._message}.{name}", value)

    def finish(self) -> None:
        if self._left:
            raise FrameCorrupt(f"{self._message} has unknown fields {sorted(self._left)}")

    def refusal(self, name: str, wanted: str, value: object) -> FrameCorrupt:
        return FrameCorrupt(f"{self._message}.{name} must be {wanted}, not {value!r:.100}")

    def _pop(self, name: str) -> Any:
        if name not in self._left:
            raise FrameCorrupt(f"{self._message} lacks field {name}")
        return self._left.pop(name)
