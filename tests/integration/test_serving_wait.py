"""Why a service that was started cannot serve: what is missing, and who was refused and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.commands.status import status_text
from cluster.serving_wait import raise_if_refused, wait_until_serving
from engine.fake_model import prepare_fake_model
from pdserve.clock import MonotonicClock
from pdserve.errors import IncompatibleWorker, PeerSilent, PeerUnreachable, ProtocolError
from pdserve.links import WorkerLink
from pdserve.messages import Hello, StepReport, Welcome
from pdserve.rpc.worker_link import dial_router
from pdserve.types import Role, WorkerStatus
from router.app import RouterApp
from router.client import AsyncClient
from router.config import RouterConfig
from support.local_service import inproc_service
from support.scripted_worker import make_hello

CONFIG = RouterConfig(http_port=0, grpc_port=0, worker_port=0)


async def joining(app: RouterApp, hello: Hello) -> WorkerLink:
    link = await dial_router(f"127.0.0.1:{app.worker_port}")
    await link.send(hello)
    return link


async def test_the_refusal_is_told_until_the_worker_joins(tmp_path: Path) -> None:
    async with RouterApp(CONFIG, prepare_fake_model(tmp_path), MonotonicClock()) as app:
        fits = {"model_fingerprint": app.model.fingerprint}
        target = f"127.0.0.1:{app.grpc_port}"
        prefill = await joining(app, make_hello("P1", Role.PREFILL, **fits))
        assert isinstance(await prefill.receive(), Welcome)
        other = await joining(app, make_hello("D1", Role.DECODE, model_fingerprint="other"))
        with pytest.raises(IncompatibleWorker):
            await other.receive()
        await other.close()
        reason = r"no decode worker; D1 was refused: model_fingerprint of test is other"
        with pytest.raises(PeerSilent, match=rf"cannot serve after 0.2 s; {reason}") as told:
            await wait_until_serving(target, 0.2)
        assert told.value.next_step == IncompatibleWorker.next_step
        with pytest.raises(IncompatibleWorker, match=rf"{target} cannot serve; {reason}"):
            await raise_if_refused(target, "D1")
        await raise_if_refused(target, "P1")  # this one was not
        async with AsyncClient(target) as client:
            text = status_text(await client.cluster_status())
            assert "cannot serve now: no decode worker" in text
            assert "refused: D1: model_fingerprint of test is other" in text
            decode = await joining(app, make_hello("D1", Role.DECODE, **fits))
            assert isinstance(await decode.receive(), Welcome)
            await wait_until_serving(target, 20)
            await raise_if_refused(target, "D1")
            view = await client.cluster_status()
            assert (view.refused, view.problem) == ((), "")
            assert "refused" not in status_text(view)
        await prefill.close()
        await decode.close()


async def test_one_that_says_no_hello_is_told_by_its_address(tmp_path: Path) -> None:
    async with RouterApp(CONFIG, prepare_fake_model(tmp_path), MonotonicClock()) as app:
        link = await dial_router(f"127.0.0.1:{app.worker_port}")
        await link.send(StepReport((), WorkerStatus()))
        with pytest.raises(ProtocolError, match="not Hello"):
            await link.receive()
        await link.close()
        (refused,) = app.router.status().refused
    assert refused.worker_id == ""
    assert refused.peer == f"pid {os.getpid()} of this host"
    assert refused.problem == "the first message is a StepReport, not Hello"


async def test_where_nobody_listens_there_is_no_more_to_tell() -> None:
    with pytest.raises((PeerSilent, PeerUnreachable)) as told:
        await wait_until_serving("127.0.0.1:9", 0.2)
    assert "refused" not in str(told.value)
    await raise_if_refused("127.0.0.1:9", "D1")


async def test_a_refused_worker_that_is_not_needed_ends_no_wait(tmp_path: Path) -> None:
    async with RouterApp(CONFIG, prepare_fake_model(tmp_path), MonotonicClock()) as app:
        fits = {"model_fingerprint": app.model.fingerprint}
        links = [
            await joining(app, make_hello("P1", Role.PREFILL, **fits)),
            await joining(app, make_hello("D1", Role.DECODE, **fits)),
            await joining(app, make_hello("D2", Role.DECODE, model_fingerprint="other")),
        ]
        with pytest.raises(IncompatibleWorker):
            await links[2].receive()
        target = f"127.0.0.1:{app.grpc_port}"
        await wait_until_serving(target, 20)
        await raise_if_refused(target, "D2")
        for link in links:
            await link.close()


async def test_a_service_in_one_process_ends_with_its_refused_worker() -> None:
    with pytest.raises(IncompatibleWorker, match="was refused: kv_codings: .* asks for int8"):
        async with inproc_service("--kv-in-flight=int8", "--start-timeout-s=20"):
            pass
