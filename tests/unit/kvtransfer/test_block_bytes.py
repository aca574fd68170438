"""Frames that go in at once, against the plain twin: each call waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from kvtransfer.block_bytes import (
    Fill,
    Put,
    carried,
    fill_checked,
    following,
    lying_there,
    paced,
    paced_by_calls,
)
from kvtransfer.digest import payload_checksum
from kvtransfer.intake import IntakeBudget
from kvtransfer.messages import Frame
from kvtransfer.transports.base import Placed
from pdserve.errors import FrameCorrupt
from pdserve.types import TicketId
from support.kv_pair import until

BLOCK_BYTES, NUM_BLOCKS = 48, 5
POOL = memoryview(bytes(range(1, 1 + 48 * 5)))
BLOCK_IDS = (3, 0, 4, 1, 2)
PAYLOAD = memoryview(b"".join(POOL[48 * number : 48 * (number + 1)] for number in BLOCK_IDS))
FRAME = Frame(
    ticket_id=TicketId("t"), epoch=1, seq=0, first_token=0, num_tokens=20, first_layer=0,
    num_layers=1, first_head=0, num_heads=1, dtype="float32", xxh3=payload_checksum([PAYLOAD]),
    pieces=(PAYLOAD,), block_ids=BLOCK_IDS,
)  # fmt: skip
PACED = [paced, paced_by_calls]


@dataclass
class PoolWindow:
    """Of ``POOL``. Notes how many blocks each read was for."""

    at_once_bytes: int | None

    def __post_init__(self) -> None:
        self.sizes: list[int] = []

    async def read(self, offsets: Sequence[int], out: Sequence[memoryview], placed: Placed) -> None:
        self.sizes.append(len(out))
        for offset, piece in zip(offsets, out, strict=True):
            piece[:] = POOL[offset : offset + piece.nbytes]
            placed(piece)


class PayloadComes:
    """A lane by which ``PAYLOAD`` comes."""

    def __init__(self) -> None:
        self._left = PAYLOAD

    async def send(self, data: bytes, payload: Sequence[memoryview]) -> None:
        raise AssertionError("the reader sends no payload")

    async def receive_into(self, out: Sequence[memoryview]) -> None:
        for piece in out:
            piece[:], self._left = self._left[: piece.nbytes], self._left[piece.nbytes :]


FILLS: dict[str, Callable[[], Fill]] = {
    "carried": lambda: carried(FRAME),
    "following": lambda: following(PayloadComes()),
    "lying there": lambda: lying_there(FRAME, PoolWindow(None)),
    "lying there, by one block": lambda: lying_there(FRAME, PoolWindow(0)),
    "lying there, by two blocks": lambda: lying_there(FRAME, PoolWindow(2 * BLOCK_BYTES + 7)),
}
NEVER_WAITING = ("carried", "lying there")


def room() -> list[memoryview]:
    return [memoryview(bytearray(BLOCK_BYTES)) for _ in range(NUM_BLOCKS)]


def limited(bytes_per_step: int) -> IntakeBudget:
    intake = IntakeBudget(bytes_per_step)
    intake.set_unlimited(False)
    return intake


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("pace", PACED)
async def test_the_same_bytes_either_way(
    pace: Callable[[Fill, IntakeBudget], Put], fill: Callable[[], Fill]
) -> None:
    for intake in (IntakeBudget(1), limited(1 << 20)):
        pieces = room()
        await fill_checked(pieces, FRAME, pace(fill(), intake))
        assert b"".join(pieces) == PAYLOAD
        assert (intake.bytes_taken, intake.num_waits) == (len(PAYLOAD), 0)
        wrong = replace(FRAME, xxh3=FRAME.xxh3 ^ 1)
        with pytest.raises(FrameCorrupt, match="checksum differs"):
            await fill_checked(room(), wrong, pace(fill(), intake))


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("pace", PACED)
async def test_each_block_is_handed_on_right_after_it_was_filled(
    pace: Callable[[Fill, IntakeBudget], Put], fill: Callable[[], Fill]
) -> None:
    pieces, order = room(), list[tuple[bytes, int]]()

    def placed(piece: memoryview) -> None:
        order.append((bytes(piece), sum(map(any, pieces))))  # how many hold something by now

    await pace(fill(), IntakeBudget(1))(0, pieces, placed)
    starts = range(0, len(PAYLOAD), BLOCK_BYTES)
    blocks = [bytes(PAYLOAD[start : start + BLOCK_BYTES]) for start in starts]
    assert order == [(block, number) for number, block in enumerate(blocks, 1)]


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("pace", PACED)
async def test_with_a_limit_each_call_waits_for_its_turn(
    pace: Callable[[Fill, IntakeBudget], Put], name: str
) -> None:
    """A call is for a block, where it takes two best for two."""
    intake, pieces = limited(BLOCK_BYTES), room()
    by_twos = name == "lying there, by two blocks"
    task = asyncio.create_task(fill_checked(pieces, FRAME, pace(FILLS[name](), intake)))
    for in_all in (2, 4) if by_twos else (1, 2, 3, 4):
        await until(lambda: intake.num_waiting > 0)
        assert intake.bytes_taken == in_all * BLOCK_BYTES
        assert sum(map(any, pieces)) == in_all
        intake.refill()
        if by_twos:  # the debt of one more
            intake.refill()
    await task
    assert b"".join(pieces) == PAYLOAD
    assert intake.bytes_taken == len(PAYLOAD)


@pytest.mark.parametrize("name", FILLS)
async def test_a_limit_that_comes_up_meanwhile_holds_from_the_next_call_on(name: str) -> None:
    """So all at once goes in only what cannot be overtaken by one."""
    intake, pieces = IntakeBudget(1), room()

    def placed(piece: memoryview) -> None:
        if sum(map(any, pieces)) == 1:
            intake.set_unlimited(False)

    task = asyncio.create_task(paced(FILLS[name](), intake)(0, pieces, placed))
    if name in NEVER_WAITING:
        await task
        assert intake.bytes_taken == len(PAYLOAD)
        return
    await until(lambda: intake.num_waiting > 0)
    first, then = (2, 2) if name == "lying there, by two blocks" else (1, 1)
    assert intake.bytes_taken == (first + then) * BLOCK_BYTES  # one byte was left of the step
    assert sum(map(any, pieces)) == first + then
    intake.set_unlimited(True)
    await task
    assert b"".join(pieces) == PAYLOAD


async def test_without_a_limit_a_window_that_never_waits_is_asked_once_a_frame() -> None:
    for at_once_bytes, sizes in ((None, [5]), (0, [1] * 5), (2 * BLOCK_BYTES, [2, 2, 1])):
        window = PoolWindow(at_once_bytes)
        fill = lying_there(FRAME, window)
        await fill_checked(room(), FRAME, paced(fill, IntakeBudget(1)))
        assert window.sizes == sizes
