"""int8 weights in the C kernels: products beside exact ones, and whole steps beside torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from engine.model_runner import ModelRunner
from engine.modelfiles.weights import map_weights
from engine.native import compiler
from engine.native.compiler import build_library
from engine.native.library import Library, Linear
from engine.native.packed_weights import PackedWeights
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver

PrepareTiny = Callable[..., PreparedModel]

ELEMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLAGS = {"host": None, "avx2": ("-mavx2", "-mfma", "-mf16c")}


@pytest.fixture(params=ELEMENTS)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FLAGS)
def library(request: pytest.FixtureRequest, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Library:
    if flags := FLAGS[request.param]:
        monkeypatch.setattr(compiler, "HOST_FLAGS", flags)
    return Library(build_library(dtype))


@pytest.mark.parametrize("is_gated", [0, 1])
@pytest.mark.parametrize(("outputs", "inputs"), [(2, 32), (34, 64), (100, 2080)])
def test_products(library: Library, dtype: str, outputs: int, inputs: int, is_gated: int) -> None:
    """Against float64; a row has the same bits in any number of rows."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    scales = torch.rand(outputs, inputs // 32, generator=generator).half()
    words = torch.empty(library.packed_int8_words(outputs, inputs), dtype=torch.int32)
    library.pack_int8(
        values.data_ptr(), scales.data_ptr(), outputs, inputs, is_gated, words.data_ptr()
    )
    x = torch.randn(50, inputs, generator=generator).to(ELEMENTS[dtype])
    width = library.panel_width()
    padded = -(-outputs // width) * width
    linear = Linear(words.data_ptr(), padded, inputs, 1)
    out = torch.empty(50, padded)
    assert library.multiply(ctypes.byref(linear), x.data_ptr(), 50, out.data_ptr()) == 0
    weight = values.double().view(outputs, -1, 32) * scales.double().unsqueeze(-1)
    expected = x.double() @ weight.view(outputs, inputs).T
    found = out.double()[:, _places(outputs, width, is_gated)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.std()))
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 36, 37, 49):
        part = torch.empty(rows, padded)
        library.multiply(ctypes.byref(linear), x[50 - rows :].data_ptr(), rows, part.data_ptr())
        assert torch.equal(part, out[50 - rows :])


def _places(outputs: int, width: int, is_gated: int) -> list[int]:
    """Where an output stands: gate and value change places every half panel."""
    if not is_gated:
        return list(range(outputs))
    lanes = width // 2
    half = [i // lanes * width + i % lanes for i in range(outputs // 2)]
    return half + [place + lanes for place in half]


@pytest.mark.parametrize("changes", [{}, {"tied": False, "intermediate": 1184}])
async def test_native_and_torch_agree(
    prepare_tiny: PrepareTiny, dtype: str, changes: dict[str, object]
) -> None:
    """The same choices, and logprobs of the best are near."""
    prepared = prepare_tiny(dtype, weights="int8", **changes)
    found = []
    for native in ("off", "on"):
        runner = ModelRunner(
            prepared, map_weights(prepared), device="cpu", num_blocks=64, block_size=16,
            num_threads=2, native=native,
        )  # fmt: skip
        tokens = await StepDriver(runner).generate(
            list(range(3, 80)), SamplingParams(max_tokens=8, num_logprobs=5), 32
        )
        found.append([dict(t.logprobs.top)[t.token_id] for t in tokens if t.logprobs])
        await runner.close()
    tolerance = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(
        torch.tensor(found[1][:2]), torch.tensor(found[0][:2]), atol=tolerance, rtol=tolerance
    )


def test_packed_weights_are_half_of_bfloat16(library: Library, prepare_tiny: PrepareTiny) -> None:
    prepared = prepare_tiny("bfloat16", weights="int8", vocab=384, hidden=128, seed=81)
    weights = map_weights(prepared)
    PackedWeights(library, prepared, weights, ("layers.0.gate_up", "embed"))
    (path,) = prepared.folder.glob("panels*.bin")
    numbers = weights["layers.0.gate_up"].numel() + weights["embed"].numel()
    assert path.stat().st_size == numbers * 34 // 32
    path.unlink()  # made for some of the weights only
