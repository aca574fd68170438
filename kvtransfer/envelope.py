"""The bytes around one message of a KV read (docs/protocol.md section 6).

    offset  size  field
    0       2     magic "KV"
    2       1     version
    3       1     type
    4       4     header length n, little-endian
    8       8     xxh3_64 of bytes 0-7 and of the header, little-endian
    16      n     header, a msgpack map
    16+n    ...   payload

A single flipped bit anywhere before the payload is found here, in the payload by its own checksum.
Knows neither message types nor their fields (codec.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgpack
import xxhash

from pdserve.errors import FrameCorrupt

VERSION = 3  # of the envelope: block_ids and in_place came with 2, coding with 3
MAGIC = b"KV"
MAX_HEADER_BYTES = 64 * 1024

_PREFIX = struct.Struct("<2sBBI")
_CHECKSUM = struct.Struct("<Q")
_HEADER_AT = _PREFIX.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened envelope: numeric type, header fields by name, payload as a view (no copy)."""

    type_number: int
    fields: dict[str, Any]
    payload: memoryview


def seal(type_number: int, fields: dict[str, Any], pieces: Iterable[memoryview] = ()) -> bytes:
    """One message, copying the payload once."""
    header: bytes = msgpack.packb(fields)
    assert len(header) <= MAX_HEADER_BYTES, "header too long"
    prefix = _PREFIX.pack(MAGIC, VERSION, type_number, len(header))
    checksum = _CHECKSUM.pack(_header_checksum(prefix, header))
    return b"".join((prefix, checksum, header, *pieces))


def unseal(data: bytes | memoryview) -> Envelope:
    """Open one message.

    Raises:
        FrameCorrupt: names what is wrong: length, magic, version, header length, checksum, or a
            header that is not a map with text keys.
    """
    if len(data) < _HEADER_AT:
        raise FrameCorrupt(f"message of {len(data)} bytes, at least {_HEADER_AT} expected")
    magic, version, type_number, header_len = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameCorrupt(f"magic is {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise FrameCorrupt(f"version is {version}, not {VERSION}")
    if header_len > MAX_HEADER_BYTES:
        raise FrameCorrupt(f"header length is {header_len}, above {MAX_HEADER_BYTES}")
    whole = memoryview(data)
    payload_at = _HEADER_AT + header_len
    if payload_at > len(data):
        raise FrameCorrupt(f"header length is {header_len}, message ends before")
    header = whole[_HEADER_AT:payload_at]
    (checksum,) = _CHECKSUM.unpack_from(data, _PREFIX.size)
    if checksum != _header_checksum(whole[: _PREFIX.size], header):
        raise FrameCorrupt("header checksum differs")
    return Envelope(type_number, _read_map(header), whole[payload_at:])


def _header_checksum(prefix: bytes | memoryview, header: bytes | memoryview) -> int:
    hasher = xxhash.xxh3_64(prefix)
    hasher.update(header)
    return hasher.intdigest()


def _read_map(header: memoryview) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(header)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameCorrupt(f"header is not msgpack: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise FrameCorrupt("header is not a map with text keys")
    return fields
