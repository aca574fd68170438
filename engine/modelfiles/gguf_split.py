"""GGUF files in parts: ``NAME-00001-of-00003.gguf`` and its siblings, as llama.cpp splits them.

The first part has all metadata; each has a table of its own tensors. Any part may be named: the
whole is meant. Looks at names only; gguf_file.py checks what the parts say of themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from engine.modelfiles.gguf_header import GGUFHeader
from pdserve.errors import ModelFileError

_PART_NAME = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """All parts in order; the file alone if its name is not that of a part.

    Raises:
        ModelFileError: a part is missing, or the name counts wrongly.
    """
    named = _PART_NAME.fullmatch(path.name)
    if named is None:
        return (path,)
    count, number = int(named["count"]), int(named["number"])
    if not 1 <= number <= count:
        raise ModelFileError(f"{path}: part {number} of {count}")
    names = [f"{named['name']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    parts = tuple(path.with_name(name) for name in names)
    for part in parts:
        if not part.is_file():
            raise ModelFileError(f"{part}: missing; {path.name} is one of {count} parts")
    return parts


def gguf_model_name(path: Path) -> str:
    """The file's name without suffix and part number."""
    named = _PART_NAME.fullmatch(path.name)
    return path.stem if named is None else named["name"]


def check_part(path: Path, header: GGUFHeader, number: int, count: int) -> None:
    """``number`` counts from 0. Raises ModelFileError: the file says that it is another part."""
    stated = header.metadata.get("split.count", 1)
    if stated != count and (stated, count) != (0, 1):
        raise ModelFileError(
            f"{path}: split.count: {stated!r}, the name says {count}; parts are called "
            "NAME-00001-of-0000N.gguf"
        )
    if header.metadata.get("split.no", number) != number:
        raise ModelFileError(f"{path}: split.no: {header.metadata['split.no']!r}, not {number}")
