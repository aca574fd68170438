"""Messages of a KV read to bytes and back (docs/protocol.md section 6).

Strict: a header with a missing, unknown or wrongly typed field is refused by name. Whether a
message makes sense where it arrives is the sessions' matter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from kvtransfer.envelope import seal, unseal
from kvtransfer.header_fields import MAX_CHECKSUM, HeaderFields
from kvtransfer.messages import (
    Accept,
    Ack,
    Alive,
    Commit,
    Credit,
    Finished,
    FirstTokenInfo,
    Frame,
    KvMessage,
    Nack,
    Open,
    Probe,
    Ready,
    Refused,
)
from pdserve.errors import FrameCorrupt, UnknownMessage
from pdserve.types import KVLayout, TicketId, TokenLogprobs, WorkerId

DIGEST_BYTES = 16


def encode(message: KvMessage, *, apart: bool = False) -> bytes:
    """One message as bytes; a frame's payload is copied once, or with ``apart`` left out."""
    pieces = message.pieces if isinstance(message, Frame) and not apart else ()
    return seal(_NUMBERS[type(message)], _header(message), pieces)


def decode(data: bytes | memoryview, *, apart: bool = False) -> KvMessage:
    """One message; a frame's payload is a view of ``data``, or with ``apart`` yet to come.

    Raises:
        FrameCorrupt: the bytes are damaged, or a field is missing, unknown or of a wrong type.
        UnknownMessage: an intact message of a type this version does not know.
    """
    envelope = unseal(data)
    cls = _TYPES.get(envelope.type_number)
    if cls is None:
        raise UnknownMessage(f"KV message type {envelope.type_number}")
    fields = HeaderFields(cls.__name__, envelope.fields)
    if cls is Frame:
        return _decode_frame(fields, envelope.payload, apart=apart)
    if envelope.payload.nbytes:
        raise FrameCorrupt(f"{envelope.payload.nbytes} bytes after {cls.__name__}")
    message = _DECODERS[cls](fields)
    fields.finish()
    return message


def _header(message: KvMessage) -> dict[str, Any]:
    match message:
        case Open():
            return {**_plain(message), "layout": _layout_header(message.layout)}
        case Frame():
            return {
                "ticket_id": message.ticket_id,
                "epoch": message.epoch,
                "seq": message.seq,
                "first_token": message.first_token,
                "num_tokens": message.num_tokens,
                "first_layer": message.first_layer,
                "num_layers": message.num_layers,
                "first_head": message.first_head,
                "num_heads": message.num_heads,
                "dtype": message.dtype,
                "payload_len": message.payload_len,
                "xxh3": message.xxh3,
                "block_ids": message.block_ids,  # packed as a list
            }
        case Commit():
            first = message.first_token
            return {
                **_plain(message),
                "first_index": first.index,
                "first_token_id": first.token_id,
                "logprobs": _logprobs_header(first.logprobs),
            }
        case _:
            return _plain(message)


def _plain(message: KvMessage) -> dict[str, Any]:
    """The fields that are numbers, text or bytes, as they are."""
    return {
        name: value
        for name in _FIELD_NAMES[type(message)]
        if isinstance(value := getattr(message, name), (int, str, bytes))
    }


@functools.lru_cache(maxsize=16)
def _layout_header(layout: KVLayout) -> dict[str, Any]:
    """The same dict each time: only to be packed."""
    return dataclasses.asdict(layout)


def _logprobs_header(logprobs: TokenLogprobs | None) -> list[Any] | None:
    if logprobs is None:
        return None
    return [float(logprobs.chosen), [[token_id, float(value)] for token_id, value in logprobs.top]]


def _decode_frame(fields: HeaderFields, payload: memoryview, *, apart: bool) -> Frame:
    payload_len = fields.count("payload_len")
    if payload.nbytes != (0 if apart else payload_len):
        raise FrameCorrupt(f"Frame.payload_len is {payload_len}, {payload.nbytes} bytes came")
    block_ids = fields.counts("block_ids")
    frame = Frame(
        ticket_id=TicketId(fields.text("ticket_id")),
        epoch=fields.count("epoch"),
        seq=fields.count("seq"),
        first_token=fields.count("first_token"),
        num_tokens=fields.count("num_tokens"),
        first_layer=fields.count("first_layer"),
        num_layers=fields.count("num_layers"),
        first_head=fields.count("first_head"),
        num_heads=fields.count("num_heads"),
        dtype=fields.text("dtype"),
        xxh3=fields.count("xxh3", MAX_CHECKSUM),
        pieces=() if apart or (block_ids and not payload.nbytes) else (payload,),
        block_ids=block_ids,
        bytes_to_come=payload_len if apart else 0,
    )
    fields.finish()
    return frame


def _decode_open(fields: HeaderFields) -> Open:
    layout = fields.submap("layout")
    message = Open(
        ticket_id=TicketId(fields.text("ticket_id")),
        epoch=fields.count("epoch"),
        worker_id=WorkerId(fields.text("worker_id")),
        incarnation=fields.text("incarnation"),
        layout=KVLayout(
            num_layers=layout.count("num_layers"),
            num_kv_heads=layout.count("num_kv_heads"),
            head_dim=layout.count("head_dim"),
            block_size=layout.count("block_size"),
            dtype=layout.text("dtype"),
            first_kv_head=layout.count("first_kv_head"),
            order=layout.text("order"),
        ),
    )
    layout.finish()
    return message


def _decode_commit(fields: HeaderFields) -> Commit:
    return Commit(
        ticket_id=TicketId(fields.text("ticket_id")),
        epoch=fields.count("epoch"),
        num_frames=fields.count("num_frames"),
        num_tokens=fields.count("num_tokens"),
        digest=fields.blob("digest", DIGEST_BYTES),
        first_token=FirstTokenInfo(
            index=fields.count("first_index"),
            token_id=fields.count("first_token_id"),
            logprobs=_decode_logprobs(fields),
        ),
    )


def _decode_logprobs(fields: HeaderFields) -> TokenLogprobs | None:
    value = fields.anything("logprobs")
    if value is None:
        return None
    match value:
        case [float() as chosen, list() as top] if all(map(_is_token_logprob, top)):
            return TokenLogprobs(chosen, tuple((token_id, logprob) for token_id, logprob in top))
        case _:
            raise fields.refusal("logprobs", "nil or [chosen, [[id, logprob], ...]]", value)


def _is_token_logprob(value: object) -> bool:
    match value:
        case [int() as token_id, float()]:
            return not isinstance(token_id, bool) and token_id >= 0
        case _:
            return False


_TYPES: dict[int, type[KvMessage]] = {
    1: Open,
    2: Ready,
    3: Accept,
    4: Frame,
    5: Commit,
    6: Ack,
    7: Nack,
    8: Credit,
    9: Refused,
    10: Finished,
    11: Probe,
    12: Alive,
}
_FIELD_NAMES = {
    cls: tuple(field.name for field in dataclasses.fields(cls)) for cls in _TYPES.values()
}
_NUMBERS = {cls: number for number, cls in _TYPES.items()}
_DECODERS: dict[type[KvMessage], Callable[[HeaderFields], KvMessage]] = {
    Open: _decode_open,
    Ready: lambda fields: Ready(fields.count("num_tokens")),
    Accept: lambda fields: Accept(
        fields.count("from_token"),
        fields.count("credit_bytes"),
        fields.flag("in_place"),
        fields.text("coding"),
    ),
    Commit: _decode_commit,
    Ack: lambda fields: Ack(),
    Alive: lambda fields: Alive(),
    Nack: lambda fields: Nack(fields.text("code"), fields.text("detail")),
    Credit: lambda fields: Credit(fields.count("num_bytes")),
    Refused: lambda fields: Refused(fields.text("code"), fields.text("detail")),
    Finished: lambda fields: Finished(),
    Probe: lambda fields: Probe(
        fields.count("num_tokens"),
        WorkerId(fields.text("worker_id")),
        fields.text("incarnation"),
    ),
}
