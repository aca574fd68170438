"""The two files of a batch: the input is read line by line, the output grows by whole lines.

An output that is there already is what an earlier run had finished: its lines are not done again,
but for those that failed through the service, which are taken out. Results come in the order in
which they are finished. Not covered: files that are no local files, compressed files.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

from cluster.batch.lines import (
    BatchLine,
    LineResult,
    RefusedLine,
    decode_result,
    encode_result,
    parse_line,
)
from pdserve.errors import InvalidRequest, PdserveError


class BatchFileError(PdserveError):
    """A file of the batch cannot be used. Names the file, and the line where it is one."""

    code = "batch_file_error"


@dataclass(frozen=True, slots=True)
class BatchInput:
    """A file of requests that has been looked through once."""

    path: Path
    num_lines: int  # that are not blank
    repeats: dict[int, int]  # number of a line -> number of the one that has its custom_id already

    def lines(self) -> Iterator[BatchLine | RefusedLine]:
        """Every line that is not blank, in order."""
        for number, raw in _numbered_lines(self.path):
            line = parse_line(number, raw)
            first = self.repeats.get(number)
            if first is not None and isinstance(line, BatchLine):
                error = InvalidRequest("custom_id", f"line {first} has {line.custom_id!r} already")
                line = RefusedLine(number, line.custom_id, error)
            yield line


def check_input(path: Path) -> None:
    """Raises BatchFileError if it cannot be read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unusable(path, error) from error


def read_input(path: Path, done: dict[int, str | None]) -> BatchInput:
    """Look through the input. ``done``: numbers of finished lines with their custom_id.

    Raises:
        BatchFileError: it cannot be read or is empty, or what is done are lines of another file.
    """
    first_with: dict[str, int] = {}
    repeats: dict[int, int] = {}
    num_lines = 0
    unknown = set(done)
    for number, raw in _numbered_lines(path):
        num_lines += 1
        line = parse_line(number, raw)
        if number in done and done[number] != line.custom_id:
            raise BatchFileError(
                f"{path} line {number} is {line.custom_id!r}, but the output has a result of "
                f"{done[number]!r} for it: it belongs to another input"
            )
        unknown.discard(number)
        if isinstance(line, BatchLine):
            first = first_with.setdefault(line.custom_id, number)
            if first != number:
                repeats[number] = first
    if num_lines == 0:
        raise BatchFileError(f"{path} holds no requests")
    if unknown:
        raise BatchFileError(f"{path} has no line {min(unknown)}, but the output a result for it")
    return BatchInput(path, num_lines, repeats)


class BatchOutput:
    """The results, open for more. One batch at a time may have a file open.

    ``done``: lines that need not be done again, with their custom_id.
    """

    def __init__(self, path: Path, file: FileIO, done: dict[int, str | None]) -> None:
        self._path = path
        self._file = file
        self.done = done

    @classmethod
    def open(cls, path: Path) -> BatchOutput:
        """Take up the file where it was left; make it if it is not there.

        A last line without its end is cut off; results that failed through the service are taken
        out (in a new file that then takes the place of the old one).

        Raises:
            BatchFileError: another batch writes it, or it holds something else than results.
        """
        file = _open_locked(path)
        try:
            done: dict[int, str | None] = {}
            num_results = whole_bytes = 0
            for result, raw in _results(path):
                num_results += 1
                whole_bytes += len(raw)
                if not result.may_pass:
                    done[result.number] = result.custom_id
            if len(done) < num_results:
                replacement = _without_passing(path)
                file.close()
                file = replacement
            else:
                file.truncate(whole_bytes)
                file.seek(0, os.SEEK_END)
        except BaseException:
            file.close()
            raise
        return cls(path, file, done)

    def write(self, result: LineResult) -> None:
        """One whole line, in the file when this returns. Raises BatchFileError."""
        try:
            _write_all(self._file, encode_result(result))
        except OSError as error:
            raise _unusable(self._path, error) from error

    def close(self) -> None:
        """To the disk. May be called again."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise _unusable(path, error) from error


def _results(path: Path) -> Iterator[tuple[LineResult, bytes]]:
    """Every whole line of an output."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                yield decode_result(raw), raw
            except ValueError as error:
                raise BatchFileError(f"{path} line {number} is no result: {error}") from error


def _open_locked(path: Path) -> FileIO:
    """For reading and writing, unbuffered, ours alone."""
    try:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _was_replaced(path, file):
            raise BlockingIOError
    except BlockingIOError:
        file.close()
        raise BatchFileError(f"{path}: another batch writes it") from None
    except OSError as error:
        file.close()
        raise _unusable(path, error) from error
    return file


def _was_replaced(path: Path, file: FileIO) -> bool:
    """Another batch put a new file there between our open and our lock."""
    return not os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def _without_passing(path: Path) -> FileIO:
    """The same file without results that failed through the service, and without repeats."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    file = _open_locked(partial)
    try:
        file.truncate(0)
        kept: set[int] = set()
        for result, raw in _results(path):
            if not result.may_pass and result.number not in kept:
                kept.add(result.number)
                _write_all(file, raw)
        os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        file.close()
        partial.unlink(missing_ok=True)
        raise
    return file


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _unusable(path: Path, error: OSError) -> BatchFileError:
    return BatchFileError(f"{path}: {error.strerror or error}")
