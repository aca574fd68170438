"""Traces are read as published, and what is not one is refused by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.compare.traces import RecordedRequest, read_trace
from pdserve.errors import ConfigError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8

2023-11-16 18:17:05.9799600,110,0
2023-11-16 18:17:33.4590290,34,12
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 6000, "input_length": 40, "output_length": 9, "hash_ids": [0]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure_times_run_from_the_first_request(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, AZURE), "auto", 0, 10)
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in requests] == [
        (4808, 10),
        (3180, 8),
        (34, 12),  # the one without an answer is passed over
    ]
    assert [r.at_s for r in requests] == [0.0, pytest.approx(0.052), pytest.approx(29.479069)]


def test_mooncake_keeps_its_blocks(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, MOONCAKE), "auto", 0, 10) == [
        RecordedRequest(3.0, 600, 5, (0, 7)),
        RecordedRequest(6.0, 40, 9, (0,)),
    ]


def test_a_piece_of_a_trace(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    assert [r.num_prompt_tokens for r in read_trace(path, "azure", 1, 1)] == [3180]
    with pytest.raises(ConfigError, match="no request after the first 3"):
        read_trace(path, "azure", 3, 1)


@pytest.mark.parametrize(
    ("text", "form", "told"),
    [
        ("a,b\n1,2\n", "auto", "line 1 of .* must be TIMESTAMP"),
        (AZURE.replace("3180", "many"), "azure", "line 3 of .*many"),
        (MOONCAKE.replace("input_length", "inputs"), "mooncake", "line 1 of .*input_length"),
        (MOONCAKE + "{\n", "mooncake", "line 3 of"),
        (AZURE.replace(",8", ""), "azure", "line 3 of"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, form: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_trace(written(tmp_path, text), form, 0, 10)


def test_a_missing_file_is_a_wrong_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trace: .*absent"):
        read_trace(tmp_path / "absent", "auto", 0, 1)
