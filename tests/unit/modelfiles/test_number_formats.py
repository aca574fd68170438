from __future__ import annotations

import numpy as np
import pytest

from engine.modelfiles.number_formats import StoredArray, from_bytes


def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF808001])
    values = bits.astype(np.uint32).view(np.float32)
    rounded = StoredArray(values, "float32").to_dtype("bfloat16").values
    assert [hex(b) for b in rounded] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x3f80", "0xbf81"]


def test_bfloat16_to_float32_and_back_is_exact() -> None:
    bits = np.random.default_rng(0).integers(0, 0x7F80, 4096).astype(np.uint16)
    stored = StoredArray(bits, "bfloat16")
    there = stored.to_dtype("float32")
    assert there.values.dtype == np.float32
    np.testing.assert_array_equal(there.to_dtype("bfloat16").values, bits)


def test_float16_widens_exactly() -> None:
    values = np.array([1.0, -2.5, 6e-8, 65504.0], np.float16)
    widened = StoredArray(values, "float16").to_dtype("float32").values
    np.testing.assert_array_equal(widened, values.astype(np.float32))


def test_float16_rounds_as_numpy_does_and_overflows_to_infinity() -> None:
    values = np.array([1.0, 1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0], np.float32)
    rounded = StoredArray(values, "float32").to_dtype("float16")
    assert rounded.values.tolist() == [1.0, 1.0, 1 + 2**-9, 65504.0, np.inf]
    assert not rounded.is_finite()
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert StoredArray(bits, "bfloat16").to_dtype("float16").values.tolist()[0] == 1.0


def test_the_same_dtype_is_not_copied() -> None:
    stored = StoredArray(np.ones(3, np.float32), "float32")
    assert stored.to_dtype("float32") is stored


def test_an_unknown_target_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="int8"):
        StoredArray(np.ones(3, np.float32), "float32").to_dtype("int8")


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_not_finite_is_seen_in_every_format(bad: float) -> None:
    values = np.array([1.0, bad], np.float32)
    bfloat16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert not StoredArray(values, "float32").is_finite()
    assert not StoredArray(values.astype(np.float16), "float16").is_finite()
    assert not StoredArray(bfloat16, "bfloat16").is_finite()
    assert StoredArray(bfloat16[:1], "bfloat16").is_finite()


def test_from_bytes_is_little_endian_and_shaped() -> None:
    array = from_bytes(memoryview(bytes([0x80, 0x3F, 0, 0x40])), "bfloat16", (2, 1))
    assert array.values.tolist() == [[0x3F80], [0x4000]]
