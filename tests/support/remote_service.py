"""A running service seen from outside, by its public gRPC face: numbered streams, and what is left.

Stream ``n`` has a prompt and tokens of its own, which the fake engine's oracle gives. The state of
another process has no event to wait on, so the waits here ask again until it is so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from engine.fake_runner import fake_tokens
from pdserve.public import ClusterStatusView, WorkerView
from pdserve.types import SamplingParams
from router.client import AsyncClient

_ASK_AGAIN_S = 0.02


def prompt(number: int, num_tokens: int | None = None) -> list[int]:
    """Of stream ``number``, ``20 + number`` tokens long by default."""
    length = 20 + number if num_tokens is None else num_tokens
    return [(number * 13 + i * 7) % 250 for i in range(length)]


def oracle(prompt_ids: list[int], num_tokens: int) -> list[int]:
    sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    return fake_tokens(prompt_ids, sampling, num_tokens)


class Streams:
    """Reads many greedy streams at once; tells how far they are."""

    def __init__(self, client: AsyncClient, prompts: list[list[int]], num_tokens: int) -> None:
        self.ids: list[list[int]] = [[] for _ in prompts]
        self._prompts = prompts
        self._num_tokens = num_tokens
        self._reading = [
            asyncio.create_task(self._read(client, number)) for number in range(len(prompts))
        ]

    @property
    def num_tokens_read(self) -> int:
        return sum(map(len, self.ids))

    async def assert_right(self) -> None:
        """All end, each with exactly the oracle's tokens."""
        await asyncio.gather(*self._reading)
        for prompt_ids, ids in zip(self._prompts, self.ids, strict=True):
            assert ids == oracle(prompt_ids, self._num_tokens)

    async def cancel(self) -> None:
        """Let go of those that still run."""
        for reading in self._reading:
            reading.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    async def failures(self) -> list[BaseException | None]:
        """What ended each stream; None for one that came to its end."""
        return list(await asyncio.gather(*self._reading, return_exceptions=True))

    def assert_prefixes(self) -> None:
        """What came, of streams that may have been cut, is right as far as it goes."""
        for prompt_ids, ids in zip(self._prompts, self.ids, strict=True):
            assert ids == oracle(prompt_ids, self._num_tokens)[: len(ids)]

    async def _read(self, client: AsyncClient, number: int) -> None:
        call = client.generate(
            prompt_ids=self._prompts[number], max_tokens=self._num_tokens, temperature=0.0,
            ignore_eos=True,
        )  # fmt: skip
        async for delta in call:
            self.ids[number].extend(delta.token_ids)


async def status_when(
    client: AsyncClient, holds: Callable[[ClusterStatusView], bool], timeout_s: float = 30.0
) -> ClusterStatusView:
    """The first status for which ``holds``; AssertionError with the last one if none comes."""
    status = await client.cluster_status()
    try:
        async with asyncio.timeout(timeout_s):
            while not holds(status):
                await asyncio.sleep(_ASK_AGAIN_S)
                status = await client.cluster_status()
    except TimeoutError:
        raise AssertionError(f"never came true: {status}") from None
    return status


async def assert_settled(client: AsyncClient, *worker_ids: str) -> None:
    """Exactly these workers are in the pool, and nothing that was asked for is held anywhere."""
    await status_when(client, lambda status: _is_settled(status, set(worker_ids)))


def is_empty(worker: WorkerView) -> bool:
    status = worker.status
    return status.free_blocks == status.total_blocks and not (
        worker.num_legs or status.reserved_blocks or status.num_queued or status.num_running
        or status.num_parked or status.num_exported
    )  # fmt: skip


def _is_settled(status: ClusterStatusView, worker_ids: set[str]) -> bool:
    return (
        status.can_serve
        and {str(worker.worker_id) for worker in status.workers} == worker_ids
        and not (status.num_queued or status.num_in_flight or status.num_tickets)
        and all(is_empty(worker) for worker in status.workers)
    )


def assert_free(*ports: int) -> None:
    """Nobody listens there any more."""
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is still served"
