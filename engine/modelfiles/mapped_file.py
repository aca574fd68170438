"""A file's bytes without reading them all: what both weight formats are parsed over."""

from __future__ import annotations

import mmap
from pathlib import Path

from pdserve.errors import ModelFileError


def map_file(path: Path) -> memoryview:
    """Read-only bytes of the file, mapped for as long as any view of them lives.

    Raises:
        ModelFileError: absent, not readable or empty.
    """
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: missing") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: empty file") from error
