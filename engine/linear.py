"""Linear layers whose rows do not depend on their batch.

A row's bits must be the same alone, in a batch of 32 and in a chunk of 256. Matrix libraries do
not promise that (they switch kernels with the number of rows), so each way to multiply is checked
on the model's own shapes at start and the first that passes is used:

    onednn-bf16   weights packed in bfloat16; CPUs with bfloat16 matrix instructions
    onednn-f32    weights packed in float32, result rounded to the model's dtype
    padded-N      the matrix library's float32 kernel, rows padded to a multiple of N
    tiled-64      the same on exactly 64 rows a call: same shape, same kernel. Slow, always right

Measured on AVX2 (Zen 3, MKL 2024.2, oneDNN 3.12): MKL is invariant from 4 rows a thread on,
oneDNN's packed kernel for every number of rows and threads, and faster from 4 rows on (with AVX-512
only up to 1,024 inputs: longer sums are split as the rows decide). bfloat16
without matrix instructions runs at 10 GFLOP/s a thread, hence float32 there (the products are
exact either way). On other devices the library's own kernel is used unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows it by

from engine.threads import one_thread
from pdserve.log import event_log

logger = event_log(__name__)

TILE_ROWS = 64
CHECK_COLUMNS = 1024  # outputs of a weight that the check looks at
CHECK_ROWS = (1, 2, 3, 5, 8, 13, 32, 65)

Linear = Callable[[torch.Tensor], torch.Tensor]
"""[rows, in] in the kernel's input dtype -> [rows, out]."""


@dataclass(frozen=True)
class LinearKernel:
    """A way to multiply: ``pack`` turns a weight [out, in] into its ``Linear``.

    ``pack``'s linear takes and returns ``dtype``.
    """

    name: str
    dtype: torch.dtype
    pack: Callable[[torch.Tensor], Linear]


def choose_kernel(weights: Iterable[torch.Tensor], device: torch.device) -> LinearKernel:
    """The fastest kernel that leaves rows alone on these weights, at the threads now set.

    Call it in the thread that will compute, with its number of threads set.
    """
    samples = _distinct_shapes(weights)
    dtype = samples[0].dtype
    if device.type != "cpu":
        return LinearKernel(f"{device.type}, rows unchecked", dtype, _pack_plain)
    *candidates, slow_kernel = cpu_kernels(dtype)
    for kernel in candidates:
        try:
            if all(rows_are_independent(kernel, sample) for sample in samples):
                return kernel
        except (RuntimeError, NotImplementedError) as error:  # the build or CPU lacks it
            logger.info("linear_kernel_absent", kernel=kernel.name, problem=str(error))
            continue
        threads = torch.get_num_threads()
        logger.warning("linear_kernel_varies", kernel=kernel.name, threads=threads)
    return slow_kernel


def rows_are_independent(kernel: LinearKernel, weight: torch.Tensor) -> bool:
    """Whether rows come out the same in batches of several sizes, with one thread and with all.

    Of the weight's shape, on numbers whose products cancel: what is left is the error of the sums
    alone, so another order of adding shows in nearly every output, even one rounded to bfloat16.
    """
    generator = torch.Generator().manual_seed(0)
    num_inputs = weight.shape[1]
    order = torch.randperm(num_inputs, generator=generator)
    left, right = order[: num_inputs // 2], order[num_inputs // 2 : num_inputs // 2 * 2]
    paired = weight.clone()
    paired[:, right] = paired[:, left]
    linear = kernel.pack(paired)
    rows = torch.randn(2 * TILE_ROWS, num_inputs, generator=generator).to(kernel.dtype)
    rows[:, right] = -rows[:, left]
    with one_thread():
        expected = linear(rows)
    return all(
        torch.equal(linear(rows[offset : offset + size]), expected[offset : offset + size])
        for size in CHECK_ROWS
        for offset in (0, 2 * TILE_ROWS - size)
    )


def cpu_kernels(dtype: torch.dtype) -> list[LinearKernel]:
    """Ways to multiply on a CPU for a model of ``dtype``, fastest first, the safe one last."""
    padded = [
        LinearKernel(f"padded-{multiple}", torch.float32, _padded_packer(multiple))
        for multiple in (8, 16, 32)
    ]
    tiled = LinearKernel(f"tiled-{TILE_ROWS}", torch.float32, _pack_tiled)
    kernels = [LinearKernel("onednn-f32", torch.float32, _pack_onednn), *padded, tiled]
    if dtype == torch.bfloat16 and _has_bf16_instructions():
        kernels.insert(0, LinearKernel("onednn-bf16", torch.bfloat16, _pack_onednn_bf16))
    return kernels


def _has_bf16_instructions() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _distinct_shapes(weights: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """One weight of each number of inputs and outputs, large ones cut."""
    found: dict[torch.Size, torch.Tensor] = {}
    for weight in weights:
        cut = weight[:CHECK_COLUMNS]
        found.setdefault(cut.shape, cut)
    return list(found.values())


def _pack_plain(weight: torch.Tensor) -> Linear:
    return lambda x: F.linear(x, weight)


def _pack_onednn(weight: torch.Tensor) -> Linear:
    return _packed_linear(weight.float())


def _pack_onednn_bf16(weight: torch.Tensor) -> Linear:
    return _packed_linear(weight.to(torch.bfloat16))


def _packed_linear(weight: torch.Tensor) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    apply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: apply(x, packed, None, "none", [], "")


def _padded_packer(multiple: int) -> Callable[[torch.Tensor], Linear]:
    def pack(weight: torch.Tensor) -> Linear:
        weight = weight.float()

        def linear(x: torch.Tensor) -> torch.Tensor:
            missing = -x.shape[0] % multiple
            if not missing:
                return F.linear(x, weight)
            return F.linear(F.pad(x, (0, 0, 0, missing)), weight)[: x.shape[0]]

        return linear

    return pack


def _pack_tiled(weight: torch.Tensor) -> Linear:
    weight = weight.float()

    def linear(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 0, -x.shape[0] % TILE_ROWS))
        tiles = [F.linear(tile, weight) for tile in torch.split(padded, TILE_ROWS)]
        return torch.cat(tiles)[: x.shape[0]]

    return linear
