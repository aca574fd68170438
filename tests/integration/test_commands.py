"""The commands a person types: generate and status against a service, three roles by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

import pytest

from cluster.cli import main
from pdserve.rpc.health import wait_serving
from support.local_service import Command, command, inproc_service
from support.source_tree import ROOT

SHORT = ("--max-tokens=5", "--timing")


async def run(*argv: str) -> int:
    """A command of this process, beside the event loop that serves it."""
    return await asyncio.to_thread(main, argv)


async def test_generate_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    async with inproc_service("--decode-workers=2") as service:
        http, grpc = service.address.http_url, service.address.grpc_target

        async def generate(*flags: str) -> tuple[str, str]:
            capsys.readouterr()
            assert await run("generate", "hello there", *SHORT, *flags) == 0
            captured = capsys.readouterr()
            return captured.out, captured.err

        by_grpc, ledger = await generate(f"--grpc-target={grpc}")
        assert "TTFT" in ledger
        assert "from prefill-0 to decode-" in ledger
        assert "inproc" in ledger
        by_http, _ = await generate("--http", f"--http-url={http}")
        assert by_http == by_grpc
        by_grpc, _ = await generate("--raw", f"--grpc-target={grpc}")
        by_http, ledger = await generate("--raw", "--http", f"--http-url={http}")
        assert by_http == by_grpc
        assert f"({len('hello there')} tokens" in ledger

        assert await run("trace", "last", f"--grpc-target={grpc}") == 0
        drawn = capsys.readouterr().out
        assert "prefill-0 -> decode-" in drawn
        assert all(part in drawn for part in ("receive", "prefill queue", "send", "decode step"))
        assert await run("trace", "last", "--json", f"--grpc-target={grpc}") == 0
        record = json.loads(capsys.readouterr().out)
        assert record["outcome"] == "length"
        assert record["timing"]["num_generated_tokens"] == 5
        assert 0 < record["ttft_s"] <= record["timing"]["total_s"]
        found = await run("trace", record["request_id"], f"--grpc-target={grpc}")
        assert (found, drawn) == (0, capsys.readouterr().out)
        assert await run("trace", "no-such", f"--grpc-target={grpc}") == 1
        assert "no request 'no-such' among the 4 latest" in capsys.readouterr().err

        assert await run("explain", "last", f"--grpc-target={grpc}") == 0
        told = capsys.readouterr().out
        assert f"{record['request_id']}: route policy cost" in told
        assert "prefill remote (prefill_place always-remote)" in told
        assert "* prefill-0" in told
        assert "costs least" in told
        found = await run("explain", record["request_id"], "--json", f"--grpc-target={grpc}")
        (decision,) = json.loads(capsys.readouterr().out)["decisions"]
        assert (found, decision["attempt"], decision["ended"]) == (0, 1, "")
        assert {each["task"] for each in decision["candidates"]} == {"prefill", "decode"}
        assert await run("explain", "no-such", f"--grpc-target={grpc}") == 1
        assert "no routing decision of 'no-such'" in capsys.readouterr().err

        assert await run("status", f"--grpc-target={grpc}") == 0
        table = capsys.readouterr().out
        assert "can serve" in table
        assert "tickets: 0" in table
        assert await run("status", "--json", f"--grpc-target={grpc}") == 0
        view = json.loads(capsys.readouterr().out)
        names = sorted(worker["worker_id"] for worker in view["workers"])
        assert names == ["decode-0", "decode-1", "prefill-0"]
        for worker in view["workers"]:
            assert worker["status"]["free_blocks"] == worker["status"]["total_blocks"]


async def test_mistakes_of_generate_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    async with inproc_service() as service:
        http, grpc = service.address.http_url, service.address.grpc_target
        for flags in (f"--grpc-target={grpc}",), ("--http", f"--http-url={http}"):
            assert await run("generate", "hello", "--model=other", *flags) == 1
            assert "other" in capsys.readouterr().err
    assert await run("generate", "hello", f"--grpc-target={grpc}") == 1
    assert await run("generate", "hello", "--http", f"--http-url={http}") == 1
    assert await run("status", f"--grpc-target={grpc}") == 1
    assert "Traceback" not in capsys.readouterr().err
    assert await run("generate", "hello", "--http", "--grpc") == 2


async def test_the_inproc_launcher_serves_drains_and_stops() -> None:
    flags = ("--engine=fake", "--launcher=inproc", "--kv-memory=4", "--http-port=0")
    async with command("serve", *flags, "--grpc-port=0", "--worker-port=0") as serve:
        await serve.line_with("serving fake (disaggregated)")
        serve.process.terminate()
        assert await serve.rest() == 0
        assert serve.lines[-1] == "stopped"


def port_in(line: str, name: str) -> str:
    return line.split(f"{name}=")[1].split()[0]


async def test_three_roles_by_hand() -> None:
    async with contextlib.AsyncExitStack() as stack:

        async def start(role: str, *flags: str) -> Command:
            return await stack.enter_async_context(command(role, "--engine=fake", *flags))

        ports = ("--http-port=0", "--grpc-port=0", "--worker-port=0")
        router = await start("router", *ports)
        line = await router.line_with("router_ready")
        dial = f"--router=127.0.0.1:{port_in(line, 'worker_port')}"
        workers = [
            await start("prefill", dial, "--worker-id=p", "--kv-memory=4"),
            await start("decode", dial, "--worker-id=d", "--kv-memory=4"),
        ]
        target = f"127.0.0.1:{port_in(line, 'grpc_port')}"
        await wait_serving(target, 60)
        assert await run("generate", "hello", "--max-tokens=5", f"--grpc-target={target}") == 0
        for each in (*workers, router):
            each.process.terminate()
            assert await each.rest() == 0, each.lines


async def test_a_worker_of_another_model_is_refused_and_ends_with_the_reason() -> None:
    async with command("router", "--engine=fake", "--http-port=0", "--grpc-port=0",
                       "--worker-port=0") as router:  # fmt: skip
        line = await router.line_with("router_ready")
        dial = f"--router=127.0.0.1:{port_in(line, 'worker_port')}"
        async with command("decode", "--engine=fake", "--dtype=bfloat16", dial) as decode:
            assert await decode.rest() == 1
            assert "model_fingerprint" in decode.lines[-2]


async def test_an_answer_that_nobody_reads_ends_the_command() -> None:
    """As with ``| head -c1``: it must neither wait for ever nor show a traceback."""
    async with inproc_service("--fake-decode-ms=5") as service:
        read_fd, write_fd = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cluster", "generate", "hi", "--raw", "--max-tokens=2000",
            f"--grpc-target={service.address.grpc_target}",
            cwd=ROOT, stdout=write_fd, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        os.close(write_fd)
        await asyncio.to_thread(os.read, read_fd, 1)
        os.close(read_fd)
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 141
