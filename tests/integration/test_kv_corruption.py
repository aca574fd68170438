"""Any byte of any message changed on its way, in either direction: the KV and the first token are
right or there is an error. Nothing leaks, and an intact read afterwards succeeds."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer.config import TransferConfig
from pdserve.errors import TransferError
from support.kv_faults import Action, Tap, flip
from support.kv_pair import LAYOUT, kv_pair

SMALL = replace(LAYOUT, num_layers=1, head_dim=1, block_size=2)
CONFIG = TransferConfig(
    max_frame_bytes=SMALL.block_bytes,
    credit_bytes=2 * SMALL.block_bytes,
    farewell_timeout_s=0.1,
)
NUM_TOKENS = 5  # three blocks, three frames
ENDS = ["reader", "holder"]


async def read_through(end: str, action: Action) -> Tap:
    """One read with interference at one end, then one without."""
    tap = Tap(action)
    wrap = {"wrap": tap.wrap_dialer} if end == "reader" else {"wrap_handler": tap.wrap_handler}
    async with kv_pair(config=CONFIG, layout=SMALL, **wrap) as pair:  # type: ignore[arg-type]
        ticket = pair.ticket(NUM_TOKENS)
        export = pair.offer_computed(ticket)
        try:
            pair.take(await pair.redeem(ticket), export)
        except TransferError:
            assert pair.reader_pool.num_free == pair.reader_pool.num_blocks
        await pair.importer.close()
        tap.action = lambda number, data: data
        if not export.has_ended:
            later = replace(ticket, epoch=2)
            assert export.rearm(later)
            pair.take(await pair.redeem(later), export)
    return tap


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("mask", [0x01, 0xFF])
async def test_every_byte_of_every_message(end: str, mask: int) -> None:
    lengths = [len(data) for data in (await read_through(end, lambda number, data: data)).log]
    assert len(lengths) >= 9
    for number, length in enumerate(lengths):
        for offset in range(length):
            await read_through(end, flip(number, offset, mask))


def several(changes: list[tuple[int, int, int]]) -> Action:
    def action(current: int, data: bytes) -> bytes | None:
        for number, offset, mask in changes:
            changed = flip(number, offset, mask)(current, data)
            assert changed is not None
            data = changed
        return data

    return action


def spliced(number: int, start: int, removed: int, inserted: bytes) -> Action:
    """Cut bytes out of one message, or put some in."""

    def action(current: int, data: bytes) -> bytes | None:
        if current != number:
            return data
        begin = start % (len(data) + 1)
        return data[:begin] + inserted + data[begin + removed :]

    return action


NUMBERS = st.integers(0, 12)
CHANGES = st.tuples(NUMBERS, st.integers(0, 400), st.integers(1, 255))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ENDS), st.lists(CHANGES, min_size=1, max_size=6))
def test_several_bytes_anywhere(end: str, changes: list[tuple[int, int, int]]) -> None:
    asyncio.run(read_through(end, several(changes)))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ENDS), NUMBERS, st.integers(0, 400), st.integers(0, 40), st.binary(max_size=8)
)
def test_bytes_lost_or_added(
    end: str, number: int, start: int, removed: int, inserted: bytes
) -> None:
    asyncio.run(read_through(end, spliced(number, start, removed, inserted)))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("first", range(11))
@pytest.mark.parametrize("second", range(11))
async def test_messages_repeated_or_in_each_others_place(end: str, first: int, second: int) -> None:
    """Message ``second`` is replaced by an earlier one of the same read, intact but wrong there."""
    seen: list[bytes] = []

    def action(number: int, data: bytes) -> bytes:
        seen.append(data)
        return seen[first] if number == second and first < len(seen) else data

    await read_through(end, action)
