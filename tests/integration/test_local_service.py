"""A service of processes on the fake engine: start, answers, deaths, drains, mistakes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from cluster.http_stream import stream_completion
from cluster.ready import WorkerReady
from pdserve.types import Role
from router.client import AsyncClient
from support.local_service import FAKE, FREE_PORTS, command, local_service

pytestmark = pytest.mark.alone

SERVE = ("serve", *FREE_PORTS, *FAKE)


async def answer(target: str, prompt: str, max_tokens: int) -> tuple[str, int]:
    """Text and number of tokens."""
    text, num_tokens = "", 0
    async with AsyncClient(target) as client:
        async for delta in client.generate(
            prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True
        ):
            text += delta.text
            num_tokens += len(delta.token_ids)
    return text, num_tokens


async def test_a_service_answers_on_both_faces_and_stops() -> None:
    async with local_service() as (service, said):
        target = service.address.grpc_target
        text, num_tokens = await answer(target, "hello there", 20)
        assert num_tokens == 20
        chunks = await asyncio.to_thread(
            lambda: list(
                stream_completion(
                    service.address.http_url,
                    "/v1/completions",
                    {
                        "prompt": "hello there",
                        "max_tokens": 20,
                        "temperature": 0,
                        "ignore_eos": True,
                        "pdserve_timing": True,
                    },
                    60,
                )
            )
        )
        assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == text
        ledger = next(chunk["pdserve"] for chunk in chunks if "pdserve" in chunk)
        assert (ledger["prefill_worker"], ledger["decode_worker"]) == ("prefill-0", "decode-0")
        assert ledger["kv_transport"] == "shm"
        assert ledger["kv_tokens"] == len("hello there")
        await service.stop()
        assert not [line for line in said if "killed" in line or "died" in line]


async def test_colocated_has_no_prefill_process() -> None:
    async with local_service("--mode=colocated") as (service, _):
        assert list(service.workers) == ["decode-0"]
        assert (await answer(service.address.grpc_target, "hello", 5))[1] == 5


async def test_a_killed_worker_comes_back_and_the_stream_goes_on() -> None:
    async with local_service("--fake-decode-ms=20") as (service, said):
        target = service.address.grpc_target
        whole, _ = await answer(target, "tell me more", 60)
        decode = service.workers["decode-0"]
        first = decode.report
        assert isinstance(first, WorkerReady)
        text = ""
        async with AsyncClient(target) as client:
            async for delta in client.generate(
                "tell me more", max_tokens=60, temperature=0.0, ignore_eos=True
            ):
                killed = bool(text)
                text += delta.text
                if not killed and text:
                    decode.send_signal(signal.SIGKILL)
        second = await decode.next_report(first)
        assert text == whole
        assert isinstance(second, WorkerReady)
        assert second.incarnation != first.incarnation
        assert any("decode-0 died (signal SIGKILL)" in line for line in said)


async def test_the_router_comes_back_on_its_ports() -> None:
    async with local_service() as (service, _):
        target = service.address.grpc_target
        first = service.router.report
        assert first is not None
        service.router.send_signal(signal.SIGKILL)
        second = await service.router.next_report(first)
        assert second.pid != first.pid
        assert (await answer(target, "hello", 5))[1] == 5


async def test_the_command_drains_on_the_first_signal(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with command(*SERVE, "--fake-decode-ms=20", f"--ready-file={ready}") as serve:
        await serve.line_with("serving fake")
        facts = json.loads(ready.read_text())
        assert [worker["worker_id"] for worker in facts["workers"]] == ["prefill-0", "decode-0"]
        assert {worker["role"] for worker in facts["workers"]} == {Role.PREFILL, Role.DECODE}
        async with AsyncClient(facts["grpc_target"]) as client:
            stream = client.generate("hi", max_tokens=50, temperature=0.0, ignore_eos=True)
            num_tokens = len((await anext(aiter(stream))).token_ids)
            serve.process.send_signal(signal.SIGINT)
            async for delta in stream:
                num_tokens += len(delta.token_ids)
        assert num_tokens == 50
        assert await serve.rest() == 0
        assert serve.lines[-1] == "stopped"


async def test_a_second_signal_stops_now() -> None:
    async with command(*SERVE, "--fake-decode-ms=1000", "--drain-grace-s=600") as serve:
        line = await serve.line_with("serving fake")
        target = line.split("gRPC ")[1].split(";")[0]
        async with AsyncClient(target) as client:
            stream = client.generate("hi", max_tokens=5000, temperature=0.0, ignore_eos=True)
            await anext(aiter(stream))
            serve.process.send_signal(signal.SIGINT)
            await serve.line_with("stopping: ")
            serve.process.send_signal(signal.SIGINT)
            assert await serve.rest() == 0
        assert "stopping now" in serve.lines


async def test_a_port_in_use_ends_the_command_with_the_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with command(*SERVE, f"--http-port={port}") as serve:
            assert await serve.rest() == 1
    assert any(line.startswith("[router] ") and str(port) in line for line in serve.lines)
    assert "router ended at start with status" in serve.lines[-1]


async def test_a_worker_that_cannot_start_ends_the_command_with_its_error() -> None:
    async with command(*SERVE, "--kv-memory=0.0001") as serve:
        assert await serve.rest() == 1
    assert any("kv_memory_mib" in line for line in serve.lines)


async def test_a_worker_that_is_refused_ends_the_command_with_the_reason() -> None:
    """The fake engine's KV cannot be coded: whichever worker comes second is refused for good."""
    async with command(*SERVE, "--kv-in-flight=int8", "--start-timeout-s=60") as serve:
        assert await serve.rest() == 1
    said, advice = serve.lines[-2:]
    assert "cannot serve; no" in said, "and not: after 60 s"
    assert "-0 was refused: kv_codings: decode worker decode-0 asks for int8" in said
    assert advice.startswith("  next: ")
