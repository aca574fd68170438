"""Which way a model computes: the C kernels where they can be had, torch everywhere else.

With ``native = auto`` the kernels are compiled on first use, and whatever is in their way (no
compiler, another processor or device, a dtype they lack, a wrong product) is said in one line and
torch computes instead; ``on`` refuses to start then; ``off`` never tries. Both give the same tokens
in float32; their bits differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.kv_cache import KvCache
from engine.native.compiler import build_library
from engine.native.library import Library
from engine.native.native_steps import NativeSteps
from engine.step_models import StepModel
from engine.torch_steps import TorchSteps
from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.prepared import PreparedModel

logger = event_log(__name__)

NATIVE_DTYPES = ("float32", "bfloat16")


def open_step_model(
    native: str,
    prepared: PreparedModel,
    weights: Mapping[str, torch.Tensor],
    cache: KvCache,
    device: torch.device,
    *,
    num_threads: int,
    attention: str = "auto",
    decode_graphs: bool = True,
) -> StepModel:
    """Call it in the thread that will compute, its threads, cores and device set.

    Raises:
        ConfigError: ``native`` is "on" and the kernels cannot be had, or ``attention`` names one
            that cannot; says why.
    """
    num_positions = min(prepared.config.max_positions, cache.num_blocks * cache.layout.block_size)
    names_gpu_kernels = attention not in ("auto", "torch")  # the C step would pass over them
    if native != "off" and not names_gpu_kernels:
        try:
            check_native_support(prepared, device)
            library = Library(build_library(prepared.dtype))
            return NativeSteps(
                library, prepared, weights, cache,
                num_threads=num_threads, num_positions=num_positions,
            )  # fmt: skip
        except ConfigError as error:
            if native == "on":
                raise
            log = logger.info if device.type != "cpu" else logger.warning
            log("native_unavailable", problem=str(error), computing="torch")
    return TorchSteps(
        prepared, weights, cache, device,
        num_positions=num_positions, attention=attention, decode_graphs=decode_graphs,
    )  # fmt: skip


def check_native_support(prepared: PreparedModel, device: torch.device) -> None:
    """Raises ConfigError naming the first thing the kernels do not do."""
    if device.type != "cpu":
        raise ConfigError(f"native: the kernels run on CPUs, not on {device}")
    if prepared.dtype not in NATIVE_DTYPES:
        raise ConfigError(f"native: no kernels for {prepared.dtype}")
