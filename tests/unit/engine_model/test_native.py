"""The C kernels' way in: building, choosing, falling back, sharing packed weights."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine import model_choice
from engine.model_runner import ModelRunner
from engine.modelfiles.weights import map_weights
from engine.native import compiler, packed_weights
from engine.native.compiler import build_library
from engine.native.library import Library, Linear
from engine.native.packed_weights import PackedWeights
from engine.sequence import Sequence
from engine.step import StepRow
from pdserve.errors import ConfigError
from pdserve.prepared import PreparedModel
from pdserve.types import SamplingParams
from support.model_steps import StepDriver

MakeRunner = Callable[..., ModelRunner]
PrepareTiny = Callable[..., PreparedModel]

ELEMENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAMES = ("layers.0.qkv", "layers.0.gate_up", "embed")


@pytest.fixture(params=ELEMENTS)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def library(dtype: str) -> Library:
    return Library(build_library(dtype))


def packed(library: Library, weight: torch.Tensor, is_gated: bool = False) -> torch.Tensor:
    words = torch.empty(library.packed_words(*weight.shape), dtype=torch.int32)
    library.pack(weight.data_ptr(), *weight.shape, int(is_gated), words.data_ptr())
    return words


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 5), (33, 40), (100, 4500)])
def test_products_of_odd_shapes(library: Library, dtype: str, outputs: int, inputs: int) -> None:
    """Against float64; rows alone and together have the same bits."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(outputs, inputs, generator=generator).to(ELEMENTS[dtype])
    words = packed(library, weight)
    linear = Linear(words.data_ptr(), outputs, inputs)
    x = torch.randn(30, inputs, generator=generator).to(ELEMENTS[dtype])
    out = torch.empty(30, outputs)
    assert library.multiply(ctypes.byref(linear), x.data_ptr(), 30, out.data_ptr()) == 0
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-3)
    for row in (0, 11, 29):
        alone = torch.empty(1, outputs)
        library.multiply(ctypes.byref(linear), x[row].data_ptr(), 1, alone.data_ptr())
        assert torch.equal(alone[0], out[row])


async def test_native_and_torch_agree(
    prepare_tiny: PrepareTiny, make_runner: MakeRunner, dtype: str
) -> None:
    """Teacher-forced over torch's tokens: the same choices, and logprobs of the best are near."""
    found = []
    for native in ("off", "on"):
        runner = ModelRunner(
            prepare_tiny(dtype), map_weights(prepare_tiny(dtype)), device="cpu", num_blocks=64,
            block_size=16, num_threads=2, native=native,
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


def test_packed_weights_are_made_once_and_shared(
    library: Library, prepare_tiny: PrepareTiny, dtype: str
) -> None:
    prepared = prepare_tiny(dtype, seed=77)
    weights = map_weights(prepared)
    first = PackedWeights(library, prepared, weights, NAMES)
    (path,) = prepared.folder.glob("panels*.bin")
    made = path.stat()
    second = PackedWeights(library, prepared, weights, NAMES)
    assert path.stat().st_mtime_ns == made.st_mtime_ns
    assert path.stat().st_ino == made.st_ino
    for name in NAMES:
        expected = packed(library, weights[name], name.endswith("gate_up"))
        for place in (first, second):
            linear = place.linear(name)
            assert ctypes.string_at(linear.panels, 4 * len(expected)) == bytes(
                expected.numpy().data
            )
    assert not list(prepared.folder.glob(".panels-*"))


@pytest.mark.parametrize("dtype", ["float32"])
def test_a_file_of_another_size_is_made_anew(library: Library, prepare_tiny: PrepareTiny) -> None:
    prepared = prepare_tiny("float32", seed=78)
    weights = map_weights(prepared)
    PackedWeights(library, prepared, weights, NAMES)
    (path,) = prepared.folder.glob("panels*.bin")
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"cut short")
    PackedWeights(library, prepared, weights, NAMES)
    assert path.stat().st_size == size


def test_a_folder_that_cannot_be_written(
    library: Library,
    prepare_tiny: PrepareTiny,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Packed into memory of the worker's own, and said."""
    prepared = prepare_tiny(dtype, seed=79)

    def refuse(**kwargs: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(packed_weights.tempfile, "NamedTemporaryFile", refuse)
    weights = map_weights(prepared)
    with caplog.at_level(logging.WARNING):
        place = PackedWeights(library, prepared, weights, NAMES)
    assert "weights_not_shared" in caplog.text
    expected = packed(library, weights["embed"])
    address = place.linear("embed").panels
    assert ctypes.string_at(address, 4 * len(expected)) == bytes(expected.numpy().data)
    assert not list(prepared.folder.glob("panels*.bin"))


@pytest.mark.parametrize("native", ["auto"])
def test_no_compiler_means_torch_and_one_line(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "COMPILERS", ("no-such-compiler",))
    with caplog.at_level(logging.WARNING):
        runner = make_runner()
    assert runner.kernels.startswith("linear ")
    (line,) = [r.getMessage() for r in caplog.records if "native_unavailable" in r.getMessage()]
    assert "native: no C compiler found (looked for no-such-compiler)" in line


@pytest.mark.parametrize("native", ["on"])
def test_on_refuses_to_start_without_kernels(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(ConfigError, match="native: no C compiler found"):
        make_runner()


def test_the_compilers_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "HOST_FLAGS", ("-march=no-such-processor",))
    with pytest.raises(ConfigError, match=r"native: .*no-such-processor"):
        build_library("float32", tmp_path)
    assert list((tmp_path / "native").iterdir()) == []


def test_a_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_library("float32", tmp_path)
    monkeypatch.setattr(compiler, "_compile", lambda command, target: pytest.fail("again"))
    assert build_library("float32", tmp_path) == path


def test_wrong_products_are_found_out(
    prepare_tiny: PrepareTiny, monkeypatch: pytest.MonkeyPatch, make_runner: MakeRunner
) -> None:
    """As a miscompiled library would make them: torch computes."""
    prepared = prepare_tiny("float32", seed=80)
    pack = PackedWeights._pack_into

    def spoil(self: PackedWeights, mapping: memoryview) -> None:
        pack(self, mapping)  # type: ignore[arg-type]
        mapping[8:12] = b"\x00\x00\x80\x3f"

    monkeypatch.setattr(PackedWeights, "_pack_into", spoil)
    assert make_runner(prepared).kernels.startswith("linear ")


@pytest.mark.parametrize(
    ("dtype", "device", "problem"),
    [("float16", "cpu", "no kernels for float16"), ("float32", "cuda", "not on cuda")],
)
def test_what_the_kernels_do_not_do(
    prepare_tiny: PrepareTiny, dtype: str, device: str, problem: str
) -> None:
    prepared = replace(prepare_tiny("float32"), dtype=dtype)
    with pytest.raises(ConfigError, match=problem):
        model_choice.check_native_support(prepared, torch.device(device))


@pytest.mark.parametrize("native", ["on"])
async def test_phases_are_timed(make_runner: MakeRunner) -> None:
    runner = make_runner()
    driver = StepDriver(runner)
    sequence: Sequence = driver.open(range(3, 40))
    await driver.step([StepRow(sequence, 0, 37, samples=True)])
    seconds = runner.phase_seconds()
    assert set(seconds) >= {"qkv", "attention", "gate_up", "down", "lm_head"}
    assert all(value > 0 for value in seconds.values())
    assert sum(runner.phase_seconds().values()) == 0
    sequence.lease.release()


@pytest.mark.parametrize("size", (1, 15, 16, 33, 49152))
def test_the_best_id_is_the_lowest_among_equals(library: Library, dtype: str, size: int) -> None:
    find = ctypes.CDLL(str(build_library(dtype))).largest_at
    find.argtypes, find.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_int32
    values = torch.randint(-3, 4, (40, size), generator=torch.Generator().manual_seed(size)).float()
    values[1] = -torch.inf  # all masked
    values[2, : size // 2] = -torch.inf
    found = [find(row.data_ptr(), size) for row in values]
    assert found == values.numpy().argmax(-1).tolist()
