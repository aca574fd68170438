"""``pdserve doctor``: each check finds what would keep a service from starting."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from cluster.cli import main

FREE = ("--engine=fake", "--http-port=0", "--grpc-port=0", "--worker-port=0")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def findings(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, str]]:
    """Exit status, and verdict with text of the worst finding of each check."""
    status = main(["doctor", *argv, "--json"])
    worst: dict[str, str] = {}
    for each in json.loads(capsys.readouterr().out):
        told = f"{each['verdict']} {each['text']} | {each['next_step']}"
        if each["verdict"] == "PROBLEM" or each["check"] not in worst:
            worst[each["check"]] = told
    return status, worst


def test_a_host_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys, *FREE, "--kv-memory-mib=1")
    assert status == 0
    assert set(found) >= {
        "packages", "model", "cores", "memory", "ports", "C compiler", "CUDA", "Ray", "open files",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["http", "grpc", "worker"])
def test_a_port_that_is_taken(
    name: str, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = findings(capsys, *FREE, f"--{name}-port={taken_port}")
    assert status == 1
    assert f"127.0.0.1:{taken_port}: Address already in use" in found["ports"]
    assert f"--{name}-port" in found["ports"]


def test_two_ports_of_one_number(capsys: pytest.CaptureFixture[str], taken_port: int) -> None:
    status, found = findings(
        capsys, *FREE, f"--http-port={taken_port}", f"--worker-port={taken_port}"
    )
    assert status == 1
    assert "PROBLEM" in found["ports"]


def test_too_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys, *FREE, "--kv-memory-mib=900000000")
    assert status == 1
    assert found["memory"].startswith("PROBLEM")
    assert "--kv-memory-mib" in found["memory"]


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys, *FREE, "--engine=model", "--model=no-such-model")
    assert status == 1
    assert "no-such-model" in found["model"]


def test_cores_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = findings(capsys, *FREE, "--cpus=4000")
    assert status == 1
    assert "no core 4000" in found["cores and devices"]


def test_text_for_people(capsys: pytest.CaptureFixture[str], taken_port: int) -> None:
    assert main(["doctor", *FREE, f"--http-port={taken_port}"]) == 1
    text = capsys.readouterr().out
    assert "next: stop what listens there" in text
    assert text.endswith("1 problem(s)\n")
