"""What a reader accepts from a holder, which is played by the test."""

from collections.abc import Callable

import pytest

from kvtransfer.config import TransferConfig
from kvtransfer.digest import ReadDigest
from kvtransfer.envelope import seal
from kvtransfer.messages import (
    Accept,
    Ack,
    Commit,
    Credit,
    Finished,
    FinishedAtPrefill,
    Frame,
    KvMessage,
    Nack,
    Ready,
    Refused,
)
from pdserve.errors import (
    FrameCorrupt,
    LayoutMismatch,
    StaleEpoch,
    TicketExpired,
    TicketUnknown,
    TransferError,
)
from pdserve.types import TransferTicket
from support.kv_faults import Talker
from support.kv_pair import kv_pair
from support.kv_script import (
    BLOCK,
    NUM_TOKENS,
    PAYLOAD,
    Read,
    begin,
    commit,
    expect,
    frame,
    last_frame,
    sends,
)


async def test_the_right_messages_are_acknowledged() -> None:
    read = sends(frame, last_frame, commit)
    async with kv_pair(wrap_handler=read.holder) as pair:
        await read.redeem(pair)
        await read.holder.done.wait()
        assert read.last_word == Ack()


WRONG_FRAMES = {
    "ticket_id": "ticket-other",
    "epoch": 2,
    "seq": 1,
    "first_token": 4,
    "first_layer": 1,
    "num_layers": 1,
    "first_head": 1,
    "num_heads": 2,
    "dtype": "float16",
}


@pytest.mark.parametrize(("name", "value"), WRONG_FRAMES.items())
async def test_a_frame_with_a_wrong_field_is_refused_by_name(name: str, value: object) -> None:
    read = sends(lambda ticket: frame(ticket, **{name: value}))
    await expect(read, FrameCorrupt, f"frame {name} is")
    assert isinstance(read.last_word, Nack)
    assert read.last_word.code == "frame_corrupt"
    assert name in read.last_word.detail


@pytest.mark.parametrize("num_tokens", [0, 7, 9, 11, 2**62])
async def test_a_frame_with_a_wrong_range_is_refused(num_tokens: int) -> None:
    await expect(
        sends(lambda ticket: frame(ticket, num_tokens=num_tokens)), FrameCorrupt, "num_tokens"
    )


@pytest.mark.parametrize("length", [0, BLOCK, 2 * BLOCK - 1])
async def test_a_frame_with_a_wrong_length_is_refused(length: int) -> None:
    pieces = (memoryview(PAYLOAD[:length]),)
    await expect(
        sends(lambda ticket: frame(ticket, pieces=pieces)), FrameCorrupt, f"payload is {length}"
    )


async def test_a_frame_with_a_wrong_checksum_is_refused() -> None:
    await expect(sends(lambda ticket: frame(ticket, xxh3=1)), FrameCorrupt, "checksum differs")


async def test_a_frame_above_the_limit_is_refused() -> None:
    config = TransferConfig(max_frame_bytes=BLOCK)
    await expect(sends(frame), FrameCorrupt, "limit or credit", config)


async def test_a_holder_that_ignores_credit_is_refused() -> None:
    config = TransferConfig(max_frame_bytes=3 * BLOCK, credit_bytes=BLOCK)
    await expect(sends(frame), FrameCorrupt, "limit or credit", config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ticket_id", "ticket-other"),
        ("epoch", 2),
        ("num_frames", 3),
        ("num_tokens", 9),
        ("digest", b"x" * 16),
    ],
)
async def test_a_commit_with_a_wrong_field_is_refused_by_name(name: str, value: object) -> None:
    read = sends(frame, last_frame, lambda ticket: commit(ticket, **{name: value}))
    await expect(read, FrameCorrupt, f"commit {name} is")
    assert isinstance(read.last_word, Nack)


async def test_a_commit_before_the_last_frame_is_refused() -> None:
    def early(ticket: TransferTicket) -> Commit:
        digest = ReadDigest()
        digest.add(frame(ticket).xxh3)
        return commit(ticket, num_frames=1, digest=digest.value(NUM_TOKENS))

    await expect(sends(frame, early), FrameCorrupt, "after 8 of 10 tokens")


@pytest.mark.parametrize("again", [frame, last_frame])
async def test_a_frame_twice_is_refused(again: Callable[[TransferTicket], Frame]) -> None:
    await expect(sends(frame, last_frame, again), FrameCorrupt, "seq")


@pytest.mark.parametrize(
    "message", [Ready(NUM_TOKENS), Ack(), Credit(1), Accept(0, BLOCK), Nack("x", "y")]
)
async def test_messages_out_of_place_are_refused(message: KvMessage) -> None:
    await expect(sends(lambda ticket: message), FrameCorrupt, f"{type(message).__name__} came")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "0 bytes"),
        (b"nonsense" * 4, "magic"),
        (seal(99, {}), "type 99"),
        (seal(4, {}), "lacks field"),
    ],
)
async def test_nonsense_is_refused(data: bytes, named: str) -> None:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await begin(reader)
        await reader.connection.send(data)

    await expect(Read(script), FrameCorrupt, named)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ticket_unknown", TicketUnknown),
        ("ticket_expired", TicketExpired),
        ("stale_epoch", StaleEpoch),
        ("layout_mismatch", LayoutMismatch),
        ("cancelled", TransferError),
        ("never heard of", TransferError),
    ],
)
@pytest.mark.parametrize("state", ["opening", "leasing", "receiving"])
async def test_a_refusal_keeps_its_name(code: str, error: type[TransferError], state: str) -> None:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()
        if state != "opening":
            await reader.say(Ready(NUM_TOKENS))
        if state == "receiving":
            await reader.hear()
        await reader.say(Refused(code, "in detail"))
        await reader.connection.close()

    await expect(Read(script), error, "in detail")


@pytest.mark.parametrize("state", ["opening", "leasing", "receiving"])
async def test_finished_is_not_a_failure(state: str) -> None:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()
        if state != "opening":
            await reader.say(Ready(NUM_TOKENS))
        if state == "receiving":
            await reader.hear()
        await reader.say(Finished())

    read = Read(script)
    async with kv_pair(wrap_handler=read.holder) as pair:
        with pytest.raises(FinishedAtPrefill):
            await read.redeem(pair)
        await read.holder.done.wait()
        assert read.last_word is None
        assert pair.reader_pool.num_free == pair.reader_pool.num_blocks


async def test_another_number_of_tokens_is_refused() -> None:
    async def script(reader: Talker, ticket: TransferTicket) -> None:
        await reader.hear()
        await reader.say(Ready(NUM_TOKENS + 1))

    await expect(Read(script), FrameCorrupt, "holder has 11 tokens, the ticket 10")
