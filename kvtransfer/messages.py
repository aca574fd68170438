"""What the two ends of a KV read say to each other (docs/protocol.md sections 5 and 6).

Frozen values; kvtransfer/codec.py has their bytes, the sessions their order.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtransfer.coding import EXACT
from pdserve.errors import TransferError, all_errors
from pdserve.types import KVLayout, TicketId, TokenLogprobs, WorkerId


class FinishedAtPrefill(Exception):
    """The first token ended the request: there is no KV to take over. Not a failure."""


@dataclass(frozen=True, slots=True)
class FirstTokenInfo:
    """The token sampled after prefill; ``index`` counts the request's tokens from 0."""

    index: int
    token_id: int
    logprobs: TokenLogprobs | None = None


# --- reader -> holder -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """First message of a read. ``worker_id`` and ``incarnation`` are the reader's, for the log."""

    ticket_id: TicketId
    epoch: int
    worker_id: WorkerId
    incarnation: str
    layout: KVLayout


@dataclass(frozen=True, slots=True)
class Probe:
    """In place of Open: a read of so many tokens' worth of spare blocks, to measure the way."""

    num_tokens: int
    worker_id: WorkerId
    incarnation: str


@dataclass(frozen=True, slots=True)
class Accept:
    """The reader has blocks: send from this token, a block boundary, within the credit.

    ``in_place``: frames shall name blocks, which the reader reads itself, instead of carrying them.
    ``coding``: how they shall carry them (coding.py); in place they are as they are.
    """

    from_token: int
    credit_bytes: int
    in_place: bool = False
    coding: str = EXACT


@dataclass(frozen=True, slots=True)
class Credit:
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ack:
    """All of it arrived and was verified: the holder may let go."""


@dataclass(frozen=True, slots=True)
class Nack:
    """The reader gives up. ``code`` as in pdserve/errors.py."""

    code: str
    detail: str


# --- holder -> reader -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing to send yet, but here: the prompt waits or computes, or credit is used up."""


@dataclass(frozen=True, slots=True)
class Frame:
    """KV of whole blocks: tokens ``first_token`` up to ``first_token + num_tokens``.

    The last block may be partly filled. ``pieces`` is the payload: a view of each block when sent,
    one view of the received message when received. A frame in place has no pieces but
    ``block_ids``, numbers of the holder's blocks: they stay as they are until its bytes are
    credited or the read is over. One received over a connection with a lane has ``bytes_to_come``
    instead of pieces. ``dtype``: of the payload's values; of coded ones the name of the coding.
    """

    ticket_id: TicketId
    epoch: int
    seq: int
    first_token: int
    num_tokens: int
    first_layer: int
    num_layers: int
    first_head: int
    num_heads: int
    dtype: str
    xxh3: int
    pieces: tuple[memoryview, ...] = ()
    block_ids: tuple[int, ...] = ()
    bytes_to_come: int = 0

    @property
    def payload_len(self) -> int:
        return self.bytes_to_come or sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Commit:
    """Every frame was sent. ``digest`` as in kvtransfer/digest.py."""

    ticket_id: TicketId
    epoch: int
    num_frames: int
    num_tokens: int
    digest: bytes
    first_token: FirstTokenInfo


@dataclass(frozen=True, slots=True)
class Refused:
    """The reader gets nothing, or nothing more. ``code`` as in pdserve/errors.py."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The first token was the last: nothing to take over."""


KvMessage = (
    Open
    | Ready
    | Accept
    | Alive
    | Frame
    | Commit
    | Ack
    | Nack
    | Credit
    | Refused
    | Finished
    | Probe
)


def transfer_error(code: str, detail: str) -> TransferError:
    """The error a peer named; a code that is no transfer error keeps its name in the text."""
    found = all_errors().get(code)
    if found is not None and issubclass(found, TransferError):
        return found(detail)
    return TransferError(f"{code}: {detail}")
