"""What the scenario ``clients`` knows of a client: how to start it, and where its result stands.

A tool is a program of its own, run unchanged with its own options; nothing of it is imported. This
module does not know any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """The service, and the model's tokenizer as a folder for tools that make prompts with it."""

    url: str  # without /v1
    grpc_target: str
    model: str
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class Load:
    """``endpoint`` is "chat" or "completions"; lengths in tokens."""

    endpoint: str
    isl: int
    osl: int
    concurrency: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """As the tool itself reports it; None where it does not. Times in milliseconds, medians."""

    num_done: int
    num_failed: int
    ttft_ms: float | None = None
    itl_ms: float | None = None
    output_tokens_per_s: float | None = None


class ClientTool(Protocol):
    """``name`` is that of its folder under ``--environments`` too."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> str:
        """In ``bin`` of its folder; empty: this environment's Python."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables it needs beside those of the caller."""

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        """``out`` is an empty folder for its result."""

    def outcome(self, out: Path) -> Outcome:
        """Raises OSError, ValueError or LookupError if the result is not there or not as known."""
