import struct

import xxhash

from kvtransfer.digest import ReadDigest, payload_checksum


def test_checksum_is_of_the_pieces_in_one() -> None:
    pieces = (memoryview(b"one"), memoryview(b""), memoryview(b"two"))
    assert payload_checksum(pieces) == xxhash.xxh3_64_intdigest(b"onetwo")


def test_digest_is_that_of_the_protocol() -> None:
    digest = ReadDigest()
    digest.add(7)
    digest.add(2**64 - 1)
    expected = xxhash.xxh3_128_digest(struct.pack("<QQQ", 7, 2**64 - 1, 33))
    assert digest.value(33) == expected
    assert digest.value(33) == expected, "asking changed it"
    assert digest.num_frames == 2


def test_order_count_and_values_all_matter() -> None:
    def value(*checksums: int, num_tokens: int = 9) -> bytes:
        digest = ReadDigest()
        for checksum in checksums:
            digest.add(checksum)
        return digest.value(num_tokens)

    values = {value(1, 2), value(2, 1), value(1), value(1, 2, 2), value(1, 2, num_tokens=8)}
    assert len(values) == 5
