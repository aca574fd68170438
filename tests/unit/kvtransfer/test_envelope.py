import struct

import msgpack
import pytest
import xxhash

from kvtransfer.envelope import MAX_HEADER_BYTES, seal, unseal
from pdserve.errors import FrameCorrupt


def raw(header: bytes, *, magic: bytes = b"KV", version: int = 3, type_number: int = 6) -> bytes:
    """An envelope written from the protocol's text, with a right checksum."""
    prefix = magic + bytes([version, type_number]) + struct.pack("<I", len(header))
    return prefix + struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix + header)) + header


def test_bytes_are_those_of_the_protocol() -> None:
    assert seal(8, {"num_bytes": 5}) == raw(msgpack.packb({"num_bytes": 5}), type_number=8)


def test_what_was_sealed_is_unsealed() -> None:
    sealed = seal(4, {"a": 1, "b": "c"}, (memoryview(b"one"), memoryview(b"two")))
    envelope = unseal(sealed)
    assert (envelope.type_number, envelope.fields) == (4, {"a": 1, "b": "c"})
    assert envelope.payload == b"onetwo"
    assert envelope.payload.obj is sealed, "the payload was copied"


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (raw(b"\x80", magic=b"KW"), "magic"),
        (raw(b"\x80", version=4), "version is 4"),
        (raw(b"\x80" * (MAX_HEADER_BYTES + 1)), "header length is 65537"),
        (raw(b"\x90"), "not a map"),
        (raw(b""), "not msgpack"),
        (raw(b"\x80\x80"), "not msgpack"),
        (raw(b"\xc1"), "not msgpack"),
        (raw(msgpack.packb({1: 2})), "map key"),
        (raw(msgpack.packb({b"a": 2})), "text keys"),
        (raw(b"\x81\xa1\xff\x01"), "not msgpack"),
        (raw(msgpack.packb({"a": msgpack.ExtType(4, b"x")}))[:-1], "message ends before"),
    ],
)
def test_damage_is_named(data: bytes, named: str) -> None:
    with pytest.raises(FrameCorrupt, match=named):
        unseal(data)


def test_every_truncation_before_the_payload_is_refused() -> None:
    sealed = seal(2, {"num_tokens": 300})
    for length in range(len(sealed)):
        with pytest.raises(FrameCorrupt):
            unseal(sealed[:length])


def test_every_flipped_bit_before_the_payload_is_refused() -> None:
    sealed = seal(2, {"num_tokens": 300})
    for offset in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[offset] ^= 1 << bit
            with pytest.raises(FrameCorrupt):
                unseal(bytes(damaged))
