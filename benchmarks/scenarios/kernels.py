"""Kernels of ours for CUDA, compiled for an H100 (sm_90) without one: registers, shared memory.

    python -m benchmarks.run kernels

Triton compiles to PTX, its own ptxas to machine code; what is printed is ptxas' account. Occupancy
follows: blocks of threads a multiprocessor holds by registers and shared memory. It says that a
kernel compiles and does not spill. How fast it is only a card says (``engine --device cuda``).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.result import ScenarioResult
from engine.modelfiles.costs import shape_of, shipped_shapes
from engine.modelfiles.number_formats import ITEM_BYTES

SUMMARY = "GPU kernels of ours compiled for sm_90: registers, shared memory, spills"

CAPABILITY = 90
WARP_THREADS = 32
REGISTERS = 65536  # of a multiprocessor of compute capability 9.0
SHARED_BYTES = 228 * 1024
THREADS = 2048
TRITON_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
ALIGNED = [["tt.divisibility", 16]]  # what the launcher says of an argument that 16 divides


@dataclass(frozen=True)
class CompiledKernel:
    name: str
    registers: int  # of a thread
    shared_bytes: int  # of a block of threads
    spilled_bytes: int
    has_mma: bool  # products on tensor cores
    blocks: int  # of threads, on a multiprocessor at a time, as these allow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", nargs="*", default=["llama-2-7b", "llama-3-8b"])
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(TRITON_TYPES))
    parser.add_argument("--block-size", type=int, default=16)


def run(args: argparse.Namespace) -> ScenarioResult:
    rows: list[tuple[str, ...]] = [
        ("shape", "kernel", "registers", "shared bytes", "spilled bytes", "mma", "blocks / SM")
    ]
    data: dict[str, object] = {"target": f"sm_{CAPABILITY}", "dtype": args.dtype}
    for name in args.shape:
        shape = shape_of(name)
        if shape is None:
            raise SystemExit(f"--shape: {name!r} is none of {', '.join(shipped_shapes())}")
        found = compiled(
            shape.num_heads, shape.num_kv_heads, shape.head_dim,
            block_size=args.block_size, dtype=args.dtype,
        )  # fmt: skip
        data[name] = [asdict(kernel) for kernel in found]
        rows += [
            (name, kernel.name, f"{kernel.registers}", f"{kernel.shared_bytes:,}",
             f"{kernel.spilled_bytes}", "yes" if kernel.has_mma else "no", f"{kernel.blocks}")
            for kernel in found
        ]  # fmt: skip
    return ScenarioResult(rows=rows, data=data)


def compiled(
    heads: int, kv_heads: int, head_dim: int, *, block_size: int, dtype: str
) -> list[CompiledKernel]:
    """The kernels of triton_decode.py for one shape. Needs the package triton and no GPU."""
    from engine import triton_decode as source

    constants = source.part_constants(heads, kv_heads, head_dim, block_size, ITEM_BYTES[dtype])
    kv = f"*{TRITON_TYPES[dtype]}"
    part_types = {
        "queries": "*fp32", "keys": kv, "values": kv, "tables": "*i32", "key_lens": "*i32",
        "partial": "*fp32", "partial_lse": "*fp32", "scale": "fp32",
    }  # fmt: skip
    sum_types = {"partial": "*fp32", "partial_lse": "*fp32", "key_lens": "*i32", "out": "*fp32"}
    sum_constants = {name: constants[name] for name in ("head_dim", "dim_columns", "split")}
    warps = source.NUM_WARPS
    return [
        _compile(source.attend_part, part_types, constants, warps, source.NUM_STAGES),
        _compile(source.add_parts, sum_types, sum_constants, warps, source.NUM_STAGES),
    ]


def _compile(
    function: Callable[..., Any], types: dict[str, str], constants: dict[str, int],
    num_warps: int, num_stages: int,
) -> CompiledKernel:  # fmt: skip
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    jitted = triton.jit(function)
    names = jitted.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    # As at run time: addresses are aligned, and so are strides of whole rows.
    aligned = [
        name
        for name in names
        if signature[name].startswith("*") or name.endswith(("_stride", "_row", "_head"))
    ]
    kernel = triton.compile(
        ASTSource(
            jitted, signature, {(names.index(name),): value for name, value in constants.items()},
            {(names.index(name),): ALIGNED for name in aligned if name != "table_row"},
        ),
        target=GPUTarget("cuda", CAPABILITY, WARP_THREADS),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )  # fmt: skip
    registers, spilled = _assembled(kernel.asm["ptx"])
    shared = kernel.metadata.shared
    threads = num_warps * WARP_THREADS
    by_registers = REGISTERS // (registers * threads)
    by_shared = SHARED_BYTES // (shared + 1024)  # a block's own kilobyte
    return CompiledKernel(
        name=function.__name__,
        registers=registers,
        shared_bytes=shared,
        spilled_bytes=spilled,
        has_mma="mma" in kernel.asm["ptx"],
        blocks=min(by_registers, by_shared, THREADS // threads),
    )


def _assembled(ptx: str) -> tuple[int, int]:
    """(registers of a thread, bytes spilled) as ptxas says."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, "-v", f"--gpu-name=sm_{CAPABILITY}a", source, "-o", f"{source}.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill", said)
    assert registers is not None, said
    return int(registers[1]), sum(map(int, spills))
