"""Weights mapped on huge pages: the bytes are the file's, whatever the kernel grants."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine.native import file_pages
from engine.native.file_pages import HUGE_PAGE_BYTES, map_file


def written(folder: Path, num_bytes: int) -> tuple[Path, bytes]:
    path = folder / "weights"
    content = np.random.default_rng(num_bytes).bytes(num_bytes)
    path.write_bytes(content)
    return path, content


@pytest.mark.parametrize("num_bytes", (1, 5000, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + 5000))
@pytest.mark.parametrize("is_synced", (False, True))  # dirty pages cannot be read again
def test_the_mapping_is_the_file(tmp_path: Path, num_bytes: int, is_synced: bool) -> None:
    path, content = written(tmp_path, num_bytes)
    with path.open("rb") as file:
        if is_synced:
            os.fsync(file.fileno())
        mapped = map_file(file.fileno(), num_bytes)
    assert mapped.mapping[:] == content
    assert 0 <= mapped.huge_bytes <= num_bytes


def test_a_second_mapping_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    path, content = written(tmp_path, 3 * HUGE_PAGE_BYTES)
    with path.open("rb") as file:
        first = map_file(file.fileno(), len(content))
        second = map_file(file.fileno(), len(content))
    assert first.mapping[:] == second.mapping[:] == content


def test_a_kernel_without_the_advice_maps_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = written(tmp_path, HUGE_PAGE_BYTES + 5000)
    monkeypatch.setattr(file_pages, "_advise", lambda mapping, advice: False)
    with path.open("rb") as file:
        assert map_file(file.fileno(), len(content)).mapping[:] == content
