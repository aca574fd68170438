"""Three hosts and nothing but the three role commands, as docs/operations.md walks through it.

Hosts are network namespaces (support/namespaces.py): addresses, routes and a NAT of their own, on
the same files and cores. Fake engine. Not covered: real cables, name resolution, loss and delay.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.client import AsyncClient
from support.namespaces import HostNetwork, host_network, why_not
from support.remote_service import Streams, assert_settled, prompt, status_when
from support.source_tree import ROOT
from support.trio import eventually

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(why_not()), reason=f"network namespaces: {why_not()}"),
]

WORKER = ("--kv-memory=4", "--threads=1", "--fake-decode-ms=10", "--fake-prefill-us=100")
PROMPTS = [prompt(number) for number in range(16)]


@pytest.fixture
def network() -> Iterator[HostNetwork]:
    with host_network(("r", "p", "d", "e"), hidden="h") as network:
        yield network


class Hosts:
    """Role processes on the hosts of a network; their lines are kept for when something fails."""

    def __init__(self, network: HostNetwork, folder: Path) -> None:
        self.network = network
        self._folder = folder
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, host: str, role: str, *flags: str) -> asyncio.subprocess.Process:
        if role != "router":
            flags = (f"--router={self.network.addresses['r']}:9100", f"--worker-id={host}",
                     *WORKER, *flags)  # fmt: skip
        command = self.network.command(
            host, [sys.executable, "-m", "cluster", role, "--engine=fake", *flags,
                   f"--parent-pid={os.getpid()}"],
        )  # fmt: skip
        with self.log(host).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def log(self, host: str) -> Path:
        return self._folder / f"{host}.log"

    async def stop(self) -> None:
        """All at once, as when somebody ends a terminal; the statuses must be clean."""
        for process in self._processes:
            if process.returncode is None:
                process.terminate()
        statuses = await asyncio.gather(*(process.wait() for process in self._processes))
        assert set(statuses) <= {0}, self.lines()

    def lines(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()}" for log in self._folder.glob("*.log"))


@asynccontextmanager
async def router_up(
    network: HostNetwork, folder: Path, *flags: str
) -> AsyncIterator[tuple[Hosts, AsyncClient]]:
    hosts = Hosts(network, folder)
    await hosts.start("r", "router", "--listen=0.0.0.0", "--heartbeat-s=0.1", *flags)
    try:
        await answers(network.addresses["r"], 9000)
        async with AsyncClient(f"{network.addresses['r']}:9000") as client:
            yield hosts, client
    except BaseException:
        print(hosts.lines())
        raise
    finally:
        await hosts.stop()


async def answers(host: str, port: int) -> None:
    """Wait until somebody listens there."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except ConnectionError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def workers_are(client: AsyncClient, *names: str) -> None:
    await status_when(
        client,
        lambda status: {str(worker.worker_id) for worker in status.workers} == set(names),
        timeout_s=60,
    )


async def test_walkthrough(network: HostNetwork, tmp_path: Path) -> None:
    async with router_up(network, tmp_path) as (hosts, client):
        await start_prefill(hosts)
        await hosts.start("d", "decode")
        await workers_are(client, "p", "d")
        call = client.generate(prompt_ids=PROMPTS[0], max_tokens=5, ignore_eos=True)
        async for _ in call:
            pass
        assert call.timing is not None
        assert (call.timing.kv_transport, call.timing.kv_tokens) == ("tcp", len(PROMPTS[0]))
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "p", "d")


async def test_a_decode_worker_behind_a_nat_needs_nothing(
    network: HostNetwork, tmp_path: Path
) -> None:
    async with router_up(network, tmp_path) as (hosts, client):
        await start_prefill(hosts)
        await hosts.start("h", "decode")
        await workers_are(client, "p", "h")
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "p", "h")


async def test_a_prefill_worker_behind_a_nat_advertises_a_forwarded_port(
    network: HostNetwork, tmp_path: Path
) -> None:
    network.forward(9300, 9200)
    async with router_up(network, tmp_path) as (hosts, client):
        advertise = f"--advertise={network.gateway}:9300"
        await hosts.start("h", "prefill", "--listen=0.0.0.0:9200", advertise)
        await hosts.start("d", "decode")
        await workers_are(client, "h", "d")
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "h", "d")


async def start_prefill(hosts: Hosts, host: str = "p") -> None:
    address = hosts.network.addresses[host]
    await hosts.start(
        host, "prefill", "--listen=0.0.0.0:9200", f"--advertise={address}",
        "--stream-listen=0.0.0.0:9201",
    )  # fmt: skip


@pytest.mark.parametrize("lost", ["p", "d"])
async def test_a_host_is_lost_under_load_and_comes_back(
    network: HostNetwork, tmp_path: Path, lost: str
) -> None:
    """Nobody is told: packets stop. Streams go on at the other host of the role (e)."""
    async with router_up(network, tmp_path, "--worker-loss-s=1") as (hosts, client):
        await start_prefill(hosts)
        await hosts.start("d", "decode")
        if lost == "p":
            await start_prefill(hosts, "e")
        else:
            await hosts.start("e", "decode")
        await workers_are(client, "p", "d", "e")
        streams = Streams(client, PROMPTS, 100)
        await eventually(lambda: streams.num_tokens_read >= 64, timeout_s=60)
        network.unplug(lost)
        more = Streams(client, PROMPTS, 20)  # prompts under way when it is noticed
        await workers_are(client, *({"p", "d", "e"} - {lost}))
        await streams.assert_right()
        await more.assert_right()
        network.plug_in(lost)
        await workers_are(client, "p", "d", "e")
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "p", "d", "e")


async def test_a_wrong_advertised_address_is_reported_at_joining(
    network: HostNetwork, tmp_path: Path
) -> None:
    """Before any request: the address is another host's. The right one beside it serves."""
    async with router_up(network, tmp_path) as (hosts, client):
        wrong = f"--advertise={network.addresses['e']}:9200"
        await hosts.start("p", "prefill", "--listen=0.0.0.0:9200", wrong)
        await hosts.start("d", "decode")
        await workers_are(client, "p", "d")
        report = "kv_endpoint_unreachable prefill=p decode=d"
        await eventually(lambda: report in hosts.log("r").read_text(), timeout_s=30)
        await start_prefill(hosts, "e")
        found = "kv_way_found prefill=e decode=d transport=tcp"
        await eventually(lambda: found in hosts.log("r").read_text(), timeout_s=30)
        await Streams(client, PROMPTS, 20).assert_right()
        await assert_settled(client, "p", "d", "e")
