"""What every carrier of a worker's session must do: order, ends, refusals, back-pressure.

Bytes that are no messages are test_grpc_session.py and test_local_session.py.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.errors import IncompatibleWorker, ProtocolError, WorkerLost
from pdserve.links import RouterLink
from pdserve.messages import Cancel, Goodbye, Welcome
from pdserve.rpc.local_sessions import LocalWorkerLink
from pdserve.rpc.stream_link import BOX_MESSAGES
from pdserve.rpc.worker_link import GrpcWorkerLink, dial_router
from pdserve.types import RequestId, WorkerId
from support.grpc_hosts import GOODBYE, HELLO, RouterEnd, host, report, session
from support.tasks import none_left

pytestmark = pytest.mark.parametrize("carrier", ["grpc", "local"])
WELCOME = Welcome("router", 1.0)

_ROOT = Path(__file__).parents[2]
_DIAL_AND_STAY = """
import asyncio, sys
from pdserve.messages import Goodbye
from pdserve.rpc.worker_link import dial_router

async def main():
    link = await dial_router(sys.argv[1])
    await link.send(Goodbye("test"))
    await link.receive()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
async def no_task_is_left() -> object:
    before = asyncio.all_tasks()
    yield
    await none_left(before, ("link",))


def _cancel(number: int) -> Cancel:
    return Cancel(RequestId(f"r{number}"), number, "x" * 1000)


async def test_the_carrier_is_the_one_meant(carrier: str) -> None:
    wanted = {"grpc": GrpcWorkerLink, "local": LocalWorkerLink}[carrier]
    async with session(carrier) as (worker, router, _):
        assert isinstance(worker, wanted)
        assert router.peer.startswith("ipv4:127.0.0.1:" if carrier == "grpc" else "pid ")


async def test_messages_keep_their_order_both_ways(carrier: str) -> None:
    async with session(carrier) as (worker, router, _):
        numbers = range(3 * BOX_MESSAGES)

        async def talk() -> None:
            for number in numbers:
                await worker.send(report(number))
                await router.send(_cancel(number))

        talking = asyncio.create_task(talk())
        for number in numbers:
            assert await router.receive() == report(number)
            assert await worker.receive() == _cancel(number)
        await talking


async def test_what_was_sent_before_close_is_received(carrier: str) -> None:
    async with session(carrier) as (worker, router, end):
        await worker.send(HELLO)
        await worker.send(GOODBYE)
        closing = asyncio.create_task(worker.close())
        assert await router.receive() == HELLO
        assert await router.receive() == GOODBYE
        with pytest.raises(WorkerLost):
            await router.receive()
        with pytest.raises(WorkerLost):
            await router.send(WELCOME)
        end.released.set()
        await closing


async def test_the_router_closes(carrier: str) -> None:
    async with session(carrier) as (worker, router, end):
        await router.send(WELCOME)
        end.released.set()
        await router.close()
        assert await worker.receive() == WELCOME
        with pytest.raises(WorkerLost, match="ended the session"):
            await worker.receive()
        with pytest.raises(WorkerLost):
            await worker.send(GOODBYE)
        assert end.num_over == 1


async def test_closing_twice_and_after_the_end_is_harmless(carrier: str) -> None:
    async with session(carrier) as (worker, router, end):
        end.released.set()
        await worker.close()
        await worker.close()
        await router.close()
        await router.close()
        for link in (worker, router):
            with pytest.raises(WorkerLost):
                await link.receive()


async def test_a_cancelled_receive_loses_nothing(carrier: str) -> None:
    async with session(carrier) as (worker, router, _):
        received = []
        for number in range(50):
            waiting = asyncio.create_task(router.receive())
            await asyncio.sleep(0)
            waiting.cancel()
            (result,) = await asyncio.gather(waiting, return_exceptions=True)
            if not isinstance(result, BaseException):
                received.append(result)
            await worker.send(report(number))
        while len(received) < 50:
            received.append(await router.receive())
        assert received == [report(number) for number in range(50)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IncompatibleWorker("layout.head_dim: 64, not 8"), IncompatibleWorker),
        (ProtocolError("Tokens before Hello"), ProtocolError),
        (WorkerLost("another incarnation joined"), WorkerLost),
    ],
)
async def test_a_refusal_arrives_as_what_it_was(
    carrier: str, error: ProtocolError, expected: type[Exception]
) -> None:
    async with session(carrier) as (worker, router, end):
        end.released.set()
        await router.refuse(error)
        with pytest.raises(expected, match=str(error)):
            await worker.receive()
        with pytest.raises(WorkerLost):
            await worker.send(HELLO)


async def test_an_error_out_of_the_owner_refuses(carrier: str) -> None:
    async def on_link(link: RouterLink) -> None:
        await link.receive()
        raise IncompatibleWorker("model_fingerprint: a, not b")

    async with host(on_link, carrier) as address:
        worker = await dial_router(address)
        await worker.send(HELLO)
        with pytest.raises(IncompatibleWorker, match="model_fingerprint"):
            await worker.receive()
        await worker.close()


async def test_the_owner_returns_when_the_workers_process_is_killed(carrier: str) -> None:
    joined, over = asyncio.Event(), asyncio.Event()

    async def on_link(link: RouterLink) -> None:
        assert await link.receive() == GOODBYE
        joined.set()
        with pytest.raises(WorkerLost):
            await link.receive()
        over.set()

    async with host(on_link, carrier) as address, asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _DIAL_AND_STAY, address, cwd=_ROOT
        )
        await joined.wait()
        process.kill()
        await process.wait()
        await over.wait()


async def test_the_worker_sees_a_server_that_stops(carrier: str) -> None:
    end = RouterEnd()
    async with host(end.on_link, carrier) as address:
        worker = await dial_router(address)
        end.released.set()
    with pytest.raises(WorkerLost):
        await worker.receive()
    await worker.close()


async def test_a_slow_reader_stops_the_sender_and_loses_nothing(carrier: str) -> None:
    """96 MB in flight are more than both boxes and any flow-control window hold together."""
    messages = [Cancel(RequestId("r"), number, "x" * 65536) for number in range(1500)]
    async with session(carrier) as (worker, router, _):
        num_sent = 0

        async def talk() -> None:
            nonlocal num_sent
            for message in messages:
                await router.send(message)
                num_sent += 1

        talking = asyncio.create_task(talk())
        assert await worker.receive() == messages[0]
        done, _ = await asyncio.wait({talking}, timeout=0.5)
        assert not done and num_sent < len(messages)
        for message in messages[1:]:
            assert await worker.receive() == message
        await talking


async def test_a_reader_that_takes_nothing_is_lost(carrier: str) -> None:
    async with session(carrier, stalled_write_s=0.2) as (_, router, _):
        with pytest.raises(WorkerLost):
            while True:
                await router.send(_cancel(1))


async def test_a_peer_that_says_nothing_is_the_owners_to_close(carrier: str) -> None:
    async def on_link(link: RouterLink) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.receive()

    async with host(on_link, carrier) as address:
        worker = await dial_router(address)
        with pytest.raises(WorkerLost, match="ended the session"):
            await worker.receive()
        await worker.close()


async def test_many_sessions_at_once(carrier: str) -> None:
    async def on_link(link: RouterLink) -> None:
        hello = await link.receive()
        await link.send(Welcome(hello.worker_id, 1.0))
        assert isinstance(await link.receive(), Goodbye)

    async def one(address: str, number: int) -> None:
        worker = await dial_router(address)
        await worker.send(replace(HELLO, worker_id=WorkerId(f"w{number}")))
        assert await worker.receive() == Welcome(f"w{number}", 1.0)
        await worker.send(GOODBYE)
        await worker.close()

    async with host(on_link, carrier) as address:
        await asyncio.gather(*(one(address, number) for number in range(16)))
