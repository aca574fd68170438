"""One definition per option: a field of a frozen dataclass, annotated with ``Option``.

    chunk_tokens: Annotated[int, Option("prefill chunk", unit="tokens", low=16)] = 256

This module does not know which options exist (each room's config.py does).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """What a person must know of one option. Bounds are inclusive."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
