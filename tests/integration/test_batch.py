"""``pdserve batch`` over real services on the fake engine: whole, interrupted, killed, resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.local_service import FAKE, Command, command, inproc_service
from support.source_tree import ROOT

pytestmark = pytest.mark.alone

INPROC = (*FAKE, "--launcher=inproc")


def request(number: int) -> dict[str, object]:
    """Lines of both endpoints, sampled: an answer depends on its seed alone."""
    body: dict[str, object] = {"max_tokens": 10, "seed": number, "ignore_eos": True}
    if number % 2:
        body["messages"] = [{"role": "user", "content": f"hello {number}"}]
        url = "/v1/chat/completions"
    else:
        body["prompt"], url = f"hello {number}", "/v1/completions"
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}


def input_of(folder: Path, *lines: object) -> Path:
    path = folder / "requests.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def flags(source: Path, output: Path) -> tuple[str, ...]:
    return f"--input={source}", f"--output={output}", "--progress-s=0.1"


async def summary_of(*arguments: str, status: int = 0) -> dict[str, object]:
    async with command("batch", "--json", *arguments) as batch:
        assert batch.process.stdout is not None
        assert await batch.rest() == status, batch.lines
        summary: dict[str, object] = json.loads(await batch.process.stdout.read())
        return summary


def results(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> dict[str, str]:
    """Answer by custom_id; each must be there once."""
    found: dict[str, str] = {}
    for line in results(path):
        custom_id, response = line["custom_id"], line["response"]
        assert isinstance(custom_id, str)
        assert custom_id not in found
        assert isinstance(response, dict)
        assert response["status_code"] == 200
        assert "pdserve" not in response["body"]
        choice = response["body"]["choices"][0]
        found[custom_id] = choice["text"] if "text" in choice else choice["message"]["content"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Answers to lines 0 to 59 of one run in one piece."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source, output = input_of(folder, *map(request, range(60))), folder / "results.jsonl"
    argv = [sys.executable, "-m", "cluster", "batch", *INPROC, *flags(source, output)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    return texts(output)


async def test_two_hundred_lines_on_processes(tmp_path: Path) -> None:
    source, output = input_of(tmp_path, *map(request, range(200))), tmp_path / "results.jsonl"
    async with command("batch", *FAKE, *flags(source, output)) as batch:
        assert batch.process.stdout is not None
        assert await batch.rest() == 0
        summary = (await batch.process.stdout.read()).decode()
        pids = [int(line.rsplit("pid ", 1)[1]) for line in batch.lines if "ready: " in line]
        assert len(pids) == 3
        assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert sorted(texts(output)) == sorted(f"c{number}" for number in range(200))
    assert "200 of 200 lines have a result" in summary
    assert "200 answered, 0 failed" in summary
    assert "2,000 generated" in summary
    assert "TTFT ms: p50 " in summary
    assert "ITL ms: p50 " in summary
    assert any(line.startswith("[####") for line in batch.lines)
    assert batch.lines[-1].startswith("[" + "#" * 24 + "] 200/200 100 %")


async def test_lines_that_are_wrong_get_their_error_and_hold_up_no_other(tmp_path: Path) -> None:
    wrong_body = {**request(5), "body": {"prompt": "x", "max_tokens": -1}}
    wrong_model = {**request(6), "body": {"prompt": "x", "model": "gpt-9"}}
    lines = (request(0), "{", wrong_body | {"url": "/v1/completions"}, wrong_model, request(0))
    source, output = input_of(tmp_path, *lines), tmp_path / "results.jsonl"
    summary = await summary_of(*INPROC, *flags(source, output))
    assert summary["failures"] == {"invalid_request": 3, "model_not_found": 1}
    by_id = {line["id"]: line for line in results(output)}
    assert len(by_id) == 5
    assert by_id["batch_req_2"]["response"] is None
    assert by_id["batch_req_2"]["custom_id"] is None
    answer = by_id["batch_req_3"]["response"]
    assert isinstance(answer, dict)
    assert (answer["status_code"], answer["body"]["error"]["param"]) == (400, "max_tokens")
    assert by_id["batch_req_3"]["error"] is None
    refused = by_id["batch_req_4"]["response"]
    assert isinstance(refused, dict)
    assert refused["status_code"] == 404
    error = by_id["batch_req_5"]["error"]
    assert isinstance(error, dict)
    assert "line 1 has 'c0' already" in error["message"]
    before = output.read_bytes()
    again = await summary_of(*INPROC, *flags(source, output))
    assert (again["num_done_before"], again["num_answered"], again["num_failed"]) == (5, 0, 0)
    assert output.read_bytes() == before


async def under_way(batch: Command) -> None:
    """Some lines have ended, others have not."""
    await batch.line_with(" left")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
async def test_an_interrupted_batch_goes_on_without_repeating_a_line(
    tmp_path: Path, undisturbed: dict[str, str], number: signal.Signals, status: int
) -> None:
    source, output = input_of(tmp_path, *map(request, range(60))), tmp_path / "results.jsonl"
    slow = ("--concurrency=3", "--fake-decode-ms=15", *flags(source, output))
    async with command("batch", *INPROC, *slow) as batch:
        await under_way(batch)
        batch.process.send_signal(number)
        assert await batch.rest() == status
    done = texts(output)
    assert 0 < len(done) < 60
    first_part = output.read_bytes()
    summary = await summary_of(*INPROC, *flags(source, output))
    assert summary["num_done_before"] == len(done)
    assert summary["num_answered"] == 60 - len(done)
    assert output.read_bytes().startswith(first_part)
    assert texts(output) == undisturbed


async def test_a_killed_worker_costs_no_line(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    source, output = input_of(tmp_path, *map(request, range(60))), tmp_path / "results.jsonl"
    slow = ("--concurrency=6", "--fake-decode-ms=15", *flags(source, output))
    async with command("batch", *FAKE, *slow) as batch:
        line = await batch.line_with("decode-0 ready")
        await under_way(batch)
        psutil.Process(int(line.rsplit("pid ", 1)[1])).kill()
        assert await batch.rest() == 0
        assert any("decode-0 died" in line for line in batch.lines)
    assert texts(output) == undisturbed


async def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    source, output = input_of(tmp_path, *map(request, range(60))), tmp_path / "results.jsonl"
    slow = ("--concurrency=1", "--fake-decode-ms=60000", "--drain-grace-s=600")
    async with command("batch", *INPROC, *slow, *flags(source, output)) as batch:
        await batch.line_with("sending 60 lines")
        batch.process.send_signal(signal.SIGINT)
        await batch.line_with("stopping: ")
        batch.process.send_signal(signal.SIGINT)
        assert await batch.rest() == 130
    assert output.read_bytes() == b""


async def test_a_batch_goes_to_a_service_that_runs_already(
    tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    source, output = input_of(tmp_path, *map(request, range(60))), tmp_path / "results.jsonl"
    async with inproc_service() as service:
        url = f"--service-url={service.address.http_url}/v1"
        summary = await summary_of(url, *flags(source, output))
        assert summary["num_answered"] == 60
    assert texts(output) == undisturbed
    again = await summary_of(url, *flags(source, output))
    assert again["num_done_before"] == 60


async def test_lines_that_failed_through_the_service_are_done_again(tmp_path: Path) -> None:
    source, output = input_of(tmp_path, *map(request, range(5))), tmp_path / "results.jsonl"
    nobody = ("--service-url=http://127.0.0.1:9", "--max-tries=1", *flags(source, output))
    summary = await summary_of(*nobody, status=1)
    assert summary["failures"] == {"peer_unreachable": 5}
    assert len(results(output)) == 5
    assert (await summary_of(*INPROC, *flags(source, output)))["num_answered"] == 5
    assert len(texts(output)) == 5


async def test_mistakes_are_told_before_a_service_is_started(tmp_path: Path) -> None:
    source, output = input_of(tmp_path, request(0)), tmp_path / "results.jsonl"
    for arguments, status, words in (
        (("--input=x",), 2, "option --output must be given"),
        ((f"--input={tmp_path}/none", f"--output={output}"), 1, "No such file"),
        ((f"--input={source}", f"--output={source}"), 1, "is no result"),
        ((*flags(source, output), "--service-url=https://x"), 2, "service_url must look like"),
        ((*flags(source, output), "--concurrency=0"), 2, "concurrency must be at least 1"),
    ):
        async with command("batch", *arguments) as batch:
            assert await batch.rest() == status, batch.lines
        assert any(words in line for line in batch.lines), batch.lines
    assert not output.exists()
