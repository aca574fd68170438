"""The console script: finding the command, telling mistakes, exit statuses."""

from __future__ import annotations

import pytest

from cluster.cli import COMMANDS, main


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sevre"], "unknown command 'sevre'; did you mean 'serve'?"),
        (["serve", "--htp-port", "1"], "unknown argument '--htp-port'; did you mean '--http-port'"),
        (["serve", "--prefill-workers", "0"], "prefill_workers must be at least 1"),
        (["serve", "--mode", "both"], "mode must be one of disaggregated, colocated"),
        (["decode", "--dtype", "int4"], "dtype must be one of float32, bfloat16"),
        (["serve", "--cpus", "x"], "cpus must look like"),
        (["decode", "--router", ""], "routers: a worker needs one at least"),
        (["prefill", "--router", "nonsense"], "routers: must be host:port, not 'nonsense'"),
        (["decode", "--router", "r:99999"], "routers: must be host:port, not 'r:99999'"),
        (["serve", "--ready-file", "/no/such/x.json"], "x.json: there is no folder /no/such"),
        (["serve", "--ready-file", "/"], "ready_file /: is a folder"),
        (
            ["serve", "--http-port", "81", "--worker-port", "81"],
            "worker_port and http_port are both 81",
        ),
        (["model", "burn", "smollm2"], "invalid choice: 'burn'"),
    ],
)
def test_mistakes_are_told_and_end_with_status_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_model_that_is_not_there_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_a_failure_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--grpc-target", "127.0.0.1:1"]) == 1
    told = capsys.readouterr().err
    assert "next: is a service up at 127.0.0.1:1? start one with `pdserve serve`" in told
    assert main(["serve", "--prefill-workers", "0"]) == 2
    assert "next: pdserve serve --help" in capsys.readouterr().err
