"""Recorded arrivals and lengths: the public traces of Azure and of Mooncake, as they are published.

Nothing here holds text; prompts of the recorded lengths are drawn elsewhere (workload.py).
Mooncake's ``hash_ids`` name blocks of 512 tokens *and everything before them*, so equal ids are an
equal prefix. Not covered: Azure's files of 2024 (same columns; other names would be refused).

Sources: Splitwise (ISCA 2024; Azure/AzurePublicDataset), Mooncake (FAST 2025; kvcache-ai/Mooncake).
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pdserve.errors import ConfigError

MOONCAKE_BLOCK_TOKENS = 512
_AZURE_HEAD = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """``at_s``: from the first request of the trace. ``block_ids``: empty where none are known."""

    at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    block_ids: tuple[int, ...] = ()


def read_trace(path: Path, form: str, first: int, count: int) -> list[RecordedRequest]:
    """``count`` requests from the one numbered ``first`` (from 0), in order of arrival.

    ``form``: "azure", "mooncake" or "auto". Requests without prompt or answer tokens are passed
    over.

    Raises:
        ConfigError: the file cannot be read, is of another form (names the line), or has no request
            that far in.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            found = list(itertools.islice(_usable(_rows(path, form, lines)), first, first + count))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trace: {error}") from error
    if not found:
        raise ConfigError(f"trace: {path} has no request after the first {first:,}")
    found.sort(key=lambda request: request.at_s)
    return found


def _rows(path: Path, form: str, lines: Iterable[str]) -> Iterator[RecordedRequest]:
    lines = iter(lines)
    head = next(lines, "")
    form = ("mooncake" if head.startswith("{") else "azure") if form == "auto" else form
    if form == "azure":
        if next(csv.reader([head]), []) != _AZURE_HEAD:
            raise ConfigError(f"trace: line 1 of {path} must be {','.join(_AZURE_HEAD)}")
        return _numbered(path, 2, lines, _AzureReader())
    return _numbered(path, 1, itertools.chain([head], lines), _mooncake_request)


def _numbered(
    path: Path, start: int, lines: Iterable[str], read: Callable[[str], RecordedRequest]
) -> Iterator[RecordedRequest]:
    for number, line in enumerate(lines, start):
        if not line.strip():
            continue
        try:
            yield read(line)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"trace: line {number} of {path}: {error!r}") from error


class _AzureReader:
    """Times of day with seven digits after the point, made into seconds from the first."""

    def __init__(self) -> None:
        self._began: datetime | None = None

    def __call__(self, line: str) -> RecordedRequest:
        stamp, num_prompt, num_output = next(csv.reader([line]))
        at = datetime.fromisoformat(stamp[:26])  # microseconds; the seventh digit is dropped
        self._began = self._began or at
        return RecordedRequest((at - self._began).total_seconds(), int(num_prompt), int(num_output))


def _mooncake_request(line: str) -> RecordedRequest:
    row = json.loads(line)
    return RecordedRequest(
        row["timestamp"] / 1e3,
        int(row["input_length"]),
        int(row["output_length"]),
        tuple(int(block) for block in row["hash_ids"]),
    )


def _usable(rows: Iterable[RecordedRequest]) -> Iterator[RecordedRequest]:
    return (row for row in rows if row.num_prompt_tokens > 0 and row.num_output_tokens > 0)
