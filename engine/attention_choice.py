"""Which way a model attends: FlashInfer or our Triton kernel on CUDA, tiles in torch elsewhere.

With ``attention = auto`` the first that is installed, has kernels for the model's KV and agrees
with the plain one on a small example is used, and what is in the way of each is said in one line.
A name refuses to start where that one cannot be had. Why this order: docs/decisions/0009.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable

import torch

from engine.attention import TiledAttention, choose_row_padding
from engine.attention_check import allowed, check_cache, difference
from engine.attention_ways import Attention
from engine.devices import has_paged_kernels
from engine.flashinfer_attention import FlashInferAttention, unsupported
from engine.paged_attention import PagedAttention
from pdserve.errors import ConfigError
from pdserve.log import event_log
from pdserve.types import KVLayout

logger = event_log(__name__)

Maker = Callable[[KVLayout, int, torch.device, TiledAttention], Attention]


def choose_attention(
    asked: str, layout: KVLayout, num_heads: int, device: torch.device
) -> Attention:
    """``asked``: "auto", "flashinfer", "triton" or "torch". Call it in the thread that computes.

    Raises:
        ConfigError: a way was named and cannot be had; says why.
    """
    plain = TiledAttention(num_heads, choose_row_padding(layout.head_dim, device))
    if asked == "torch" or (asked == "auto" and not has_paged_kernels(device)):
        return plain
    for name, make in MAKERS.items():
        if asked not in ("auto", name):
            continue
        try:
            return _checked(make, layout, num_heads, device, plain)
        except ConfigError as error:
            if asked == name:
                raise ConfigError(f"attention: {name}: {error}") from error
            logger.warning("attention_unavailable", way=name, problem=str(error))
    return plain


def _checked(
    make: Maker, layout: KVLayout, num_heads: int, device: torch.device, plain: TiledAttention
) -> Attention:
    if not has_paged_kernels(device):
        raise ConfigError(f"the kernels run on CUDA, not on {device}")
    cache = check_cache(layout, device)
    try:
        attention = make(layout, num_heads, device, plain)
        worst = difference(attention, plain, cache, num_heads)
    # What a missing library, a missing compiler or a refused shape raises; nothing is started yet.
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{type(error).__name__}: {error}") from error
    finally:
        cache.close()
    if worst > allowed(layout):
        raise ConfigError(f"differs from the plain one by {worst:.2g}, more than {allowed(layout)}")
    return attention


def _flashinfer(
    layout: KVLayout, num_heads: int, device: torch.device, _plain: TiledAttention
) -> Attention:
    if problem := unsupported(layout):
        raise ConfigError(problem)
    return FlashInferAttention(layout, num_heads, device)


def _triton(
    _layout: KVLayout, _num_heads: int, _device: torch.device, plain: TiledAttention
) -> Attention:
    kernel = importlib.import_module("engine.triton_decode").triton_paged_decode
    return PagedAttention("triton", kernel, plain)


MAKERS: dict[str, Maker] = {"flashinfer": _flashinfer, "triton": _triton}
