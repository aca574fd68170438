"""``pdserve config``: every value with its origin, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main


def rows(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[tuple[str, str], tuple[Any, str]]:
    assert main(["config", "show", *argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {(row["role"], row["option"]): (row["value"], row["origin"]) for row in found}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(
        "[engine]\ndtype = 'bfloat16'\nthreads = 2\n[decode]\nthreads = 3\nlog_level = 'debug'\n"
        "[log]\nlog_level = 'warning'\n[router]\nhttp_port = 8080\n"
    )
    return path


def test_each_value_says_where_it_came_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDSERVE_BLOCK_SIZE", "32")
    monkeypatch.setenv("PDSERVE_PREFILL_CHUNK_TOKENS", "64")
    found = rows(capsys, "--config", str(file), "--decode-max-running", "7")
    assert found["prefill", "threads"] == (2, f"{file} [engine]")
    assert found["decode", "threads"] == (3, f"{file} [decode]")
    assert found["router", "http_port"] == (8080, f"{file} [router]")
    assert found["router", "dtype"] == ("bfloat16", f"{file} [engine]")
    assert found["decode", "max_running"] == (7, "--decode-max-running")
    assert found["decode", "block_size"] == (32, "environment variable PDSERVE_BLOCK_SIZE")
    assert found["prefill", "chunk_tokens"] == (
        64,
        "environment variable PDSERVE_PREFILL_CHUNK_TOKENS",
    )
    assert found["decode", "chunk_tokens"] == (256, "default")
    assert found["decode", "log_level"] == ("debug", f"{file} [decode]")
    assert found["router", "log_level"] == ("warning", f"{file} [log]")


def test_one_role_reads_the_same_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "router", "--config", str(file))
    assert found["router", "dtype"] == ("bfloat16", f"{file} [engine]")
    assert {role for role, _ in found} == {"router"}


def test_only_what_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, "--changed") == {}
    assert rows(capsys, "decode", "--changed", "--router", "a:1", "--router", "b:2") == {
        ("decode", "routers"): (["a:1", "b:2"], "--router")
    }


def test_text_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDSERVE_BLOCK_SIZES", "32")
    monkeypatch.setenv("PDSERVE_ROUTER_PORT", "tcp://10.0.0.1:9000")
    assert main(["config", "show", "prefill", "--chunk-tokens", "64"]) == 0
    text = capsys.readouterr().out
    assert "chunk_tokens           64 tokens       --chunk-tokens" in text
    assert "warning: PDSERVE_BLOCK_SIZES is no option; did you mean PDSERVE_BLOCK_SIZE?" in text
    assert "PDSERVE_ROUTER_PORT" not in text


@pytest.mark.parametrize("role", ["serve", "router", "prefill", "decode"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[decode]\nmax_runing = 1\n", "[decode] has no option 'max_runing'; did you mean 'max_"),
        (
            "[transfer]\nthreads = 1\n",
            "[transfer] has no option 'threads'; it belongs in [prefill]",
        ),
        ("[serve]\nhttp_port = 1\n", "[serve] has no option 'http_port'; it belongs in [router]"),
        ("[generate]\nsed = 1\n", "[generate] has no option 'sed'; did you mean 'seed'"),
        ("[decoder]\n", "unknown table [decoder]; did you mean [decode]"),
    ],
)
def test_every_role_refuses_a_wrong_key_of_any_table(
    role: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    for argv in (["config", "show", role], [role]):
        assert main([*argv, "--config", str(file)]) == 2
        assert words in capsys.readouterr().err.replace("'decode'?", "[decode]?")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["shew"], "unknown action 'shew'; did you mean 'show'"),
        (["show", "decoder"], "unknown role 'decoder'"),
        (["example", "x"], "unknown argument 'x'"),
        (["show", "--thread", "2"], "did you mean '--threads'"),
        (["show", "--prefill-dtype", "bfloat16"], "dtype must be the same"),
    ],
)
def test_mistakes(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *argv]) == 2
    assert words in capsys.readouterr().err


def test_the_router_may_not_contradict_the_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[router]\ndtype = 'bfloat16'\n")
    assert main(["config", "show", "--config", str(file)]) == 2
    assert "dtype of the router is 'bfloat16'" in capsys.readouterr().err
