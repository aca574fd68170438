"""The Triton kernels without a GPU: their numbers in the interpreter, and what sm_90 makes of them.

Both need the package triton (`make setup-triton`, part of `make test`) and are skipped by name
without it. How fast they are is not to be seen here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.scenarios import kernels
from support.source_tree import ROOT

pytest.importorskip("triton", reason="triton is not installed: make setup-triton")

SHARED_BYTES = 227 * 1024  # of a block of threads on compute capability 9.0
REGISTERS = 255  # of a thread
SHAPES = {"llama-2-7b": (32, 32, 128), "llama-3-8b": (32, 8, 128), "smollm2": (9, 3, 64)}


def test_numbers_are_the_plain_twins_and_rows_keep_their_bits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.triton_numerics"],
        cwd=ROOT, check=True, capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    for case, difference in found["differences"].items():
        assert difference < (1e-5 if case.startswith("float32") else 2e-3), case
    assert found["rows"] == 18
    assert found["kept"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_compiles_for_an_h100(dtype: str) -> None:
    for name, shape in SHAPES.items():
        for kernel in kernels.compiled(*shape, block_size=16, dtype=dtype):
            print(name, dtype, kernel)
            assert kernel.spilled_bytes == 0, name
            assert 0 < kernel.registers <= REGISTERS, name
            assert kernel.shared_bytes <= SHARED_BYTES, name
            # Products on the tensor cores, none of them rounded to TF32.
            uses_tensor_cores = kernel.name == "attend_part" and dtype != "float32"
            assert kernel.has_mma is uses_tensor_cores, name
