"""Quantised blocks: what is read is what ggml-quants.c computes, one number after the other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from engine.modelfiles.gguf_file import BLOCK_TYPES, open_gguf_file
from support.tiny_gguf import tiny_keys, write_keys

Decoder = Callable[[bytes], list[float]]
KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half(block: bytes, at: int) -> float:
    value: float = struct.unpack_from("<e", block, at)[0]
    return value


def q8_0(b: bytes) -> list[float]:
    return [half(b, 0) * q for q in struct.unpack_from("<32b", b, 2)]


def q4_0(b: bytes) -> list[float]:
    qs = b[2:]
    return [half(b, 0) * ((q & 15) - 8) for q in qs] + [half(b, 0) * ((q >> 4) - 8) for q in qs]


def q4_1(b: bytes) -> list[float]:
    d, m, qs = half(b, 0), half(b, 2), b[4:]
    return [d * (q & 15) + m for q in qs] + [d * (q >> 4) + m for q in qs]


def five_bits(qs: bytes, high: int) -> list[int]:
    low = [q & 15 | (high >> j & 1) << 4 for j, q in enumerate(qs)]
    return low + [q >> 4 | (high >> j + 16 & 1) << 4 for j, q in enumerate(qs)]


def q5_0(b: bytes) -> list[float]:
    return [half(b, 0) * (q - 16) for q in five_bits(b[6:], int.from_bytes(b[2:6], "little"))]


def q5_1(b: bytes) -> list[float]:
    d, m = half(b, 0), half(b, 2)
    return [d * q + m for q in five_bits(b[8:], int.from_bytes(b[4:8], "little"))]


def q2_k(b: bytes) -> list[float]:
    scales, qs, d, dmin = b[:16], b[16:80], half(b, 80), half(b, 82)
    out = []
    for part in range(16):  # of 16 numbers
        at = part // 8 * 32 + part % 2 * 16
        shift = part % 8 // 2 * 2
        low, high = scales[part] & 15, scales[part] >> 4
        out += [d * low * (qs[at + i] >> shift & 3) - dmin * high for i in range(16)]
    return out


def q3_k(b: bytes) -> list[float]:
    mask, qs, packed, d = b[:32], b[32:96], b[96:108], half(b, 108)
    out = []
    for part in range(16):
        low = packed[part] & 15 if part < 8 else packed[part - 8] >> 4
        scale = (low | (packed[8 + part % 4] >> part // 4 * 2 & 3) << 4) - 32
        at, shift, bit = part // 8 * 32 + part % 2 * 16, part % 8 // 2 * 2, part // 2
        for i in range(16):
            lower = 0 if mask[part % 2 * 16 + i] >> bit & 1 else 4
            out.append(d * scale * ((qs[at + i] >> shift & 3) - lower))
    return out


def scale_min(packed: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    scale = packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4
    return scale, packed[j + 4] >> 4 | (packed[j] >> 6) << 4


def q4_k(b: bytes) -> list[float]:
    d, dmin, packed, qs = half(b, 0), half(b, 2), b[4:16], b[16:]
    out = []
    for part in range(8):  # of 32 numbers
        scale, minimum = scale_min(packed, part)
        for i in range(32):
            q = qs[part // 2 * 32 + i] >> part % 2 * 4 & 15
            out.append(d * scale * q - dmin * minimum)
    return out


def q5_k(b: bytes) -> list[float]:
    d, dmin, packed, high, qs = half(b, 0), half(b, 2), b[4:16], b[16:48], b[48:]
    out = []
    for part in range(8):
        scale, minimum = scale_min(packed, part)
        for i in range(32):
            q = qs[part // 2 * 32 + i] >> part % 2 * 4 & 15 | (high[i] >> part & 1) << 4
            out.append(d * scale * q - dmin * minimum)
    return out


def q6_k(b: bytes) -> list[float]:
    low, high, d = b[:128], b[128:192], half(b, 208)
    scales = struct.unpack_from("<16b", b, 192)
    out = []
    for part in range(8):
        at, quarter = part // 4, part % 4
        for i in range(32):
            four = low[at * 64 + quarter % 2 * 32 + i] >> quarter // 2 * 4 & 15
            q = (four | (high[at * 32 + i] >> quarter * 2 & 3) << 4) - 32
            out.append(d * scales[at * 8 + quarter * 2 + i // 16] * q)
    return out


def iq4_nl(b: bytes) -> list[float]:
    return [half(b, 0) * KVALUES[q & 15] for q in b[2:]] + [
        half(b, 0) * KVALUES[q >> 4] for q in b[2:]
    ]


def iq4_xs(b: bytes) -> list[float]:
    d, high, low, qs = half(b, 0), int.from_bytes(b[2:4], "little"), b[4:8], b[8:]
    out = []
    for part in range(8):
        scale = (low[part // 2] >> part % 2 * 4 & 15 | (high >> part * 2 & 3) << 4) - 32
        cut = qs[part * 16 : part * 16 + 16]
        out += [d * scale * KVALUES[q & 15] for q in cut]
        out += [d * scale * KVALUES[q >> 4] for q in cut]
    return out


DECODERS: dict[str, tuple[Decoder, tuple[int, ...]]] = {  # and where the half floats lie
    "Q8_0": (q8_0, (0,)), "Q4_0": (q4_0, (0,)), "Q4_1": (q4_1, (0, 2)), "Q5_0": (q5_0, (0,)),
    "Q5_1": (q5_1, (0, 2)), "Q2_K": (q2_k, (80, 82)), "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)), "Q5_K": (q5_k, (0, 2)), "Q6_K": (q6_k, (208,)),
    "IQ4_NL": (iq4_nl, (0,)), "IQ4_XS": (iq4_xs, (0,)),
}  # fmt: skip


def random_blocks(kind: GGMLQuantizationType, halves: tuple[int, ...]) -> NDArray[np.uint8]:
    """For a matrix of 320 rows of 256 numbers."""
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(kind)
    blocks = rng.integers(0, 256, (320, 256 // per_block, block_bytes), np.uint8)
    for at in halves:
        scales = rng.normal(0, 0.01, blocks.shape[:2]).astype("<f2")
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(320, -1)


def test_every_type_that_is_read_is_tested() -> None:
    assert {kind.name for kind in BLOCK_TYPES} == set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_blocks_are_decoded_as_ggml_does(tmp_path: Path, name: str) -> None:
    """In the embedding of a model that is 256 wide and has one matrix of this type."""
    kind = GGMLQuantizationType[name]
    decode, halves = DECODERS[name]
    blocks = random_blocks(kind, halves)
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    write_keys(writer, tiny_keys(hidden=256, intermediate=128, num_layers=1))
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_gguf_file(tmp_path / "x.gguf").tensors
    found = tensors.read("model.embed_tokens.weight", (320, 256)).to_dtype("float32").values
    _, block_bytes = GGML_QUANT_SIZES[kind]
    for row in (0, 1, 319):
        data = blocks[row].tobytes()
        cuts = [data[at : at + block_bytes] for at in range(0, len(data), block_bytes)]
        expected = [number for cut in cuts for number in decode(cut)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
