"""Ways to attend that a GPU has, on a CPU against the plain one: same blocks, read in place.

Kernels are stood in for (support/paged_stand_ins.py); what is real is everything around them: block
tables, views of the pool, padding, which rows go where.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from engine import attention_choice
from engine.attention import TiledAttention, choose_row_padding
from engine.attention_check import allowed, check_cache, difference
from engine.attention_choice import choose_attention
from engine.attention_ways import Attention
from engine.flashinfer_attention import FlashInferAttention, unsupported
from engine.kv_cache import KvCache
from engine.paged_attention import PagedAttention, plain_paged_decode
from pdserve.errors import ConfigError
from pdserve.types import KVLayout
from support.paged_stand_ins import FlashInferStandIn

CPU = torch.device("cpu")


def layout_of(**changes: Any) -> KVLayout:
    shape = {
        "num_layers": 3,
        "num_kv_heads": 2,
        "head_dim": 64,
        "block_size": 16,
        "dtype": "float32",
    }
    return KVLayout(**{**shape, **changes})


def tiled(layout: KVLayout, num_heads: int) -> TiledAttention:
    return TiledAttention(num_heads, choose_row_padding(layout.head_dim, CPU))


def worst(attention: Attention, layout: KVLayout, num_heads: int) -> float:
    cache = check_cache(layout, CPU)
    return difference(attention, tiled(layout, num_heads), cache, num_heads)


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> FlashInferStandIn:
    library = FlashInferStandIn()
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    return library


@pytest.mark.parametrize("block_size", [1, 16, 48])
@pytest.mark.parametrize(("num_heads", "dtype"), [(2, "float32"), (6, "bfloat16")])
def test_block_tables_give_what_tiles_give(block_size: int, num_heads: int, dtype: str) -> None:
    layout = layout_of(block_size=block_size, dtype=dtype)
    attention = PagedAttention("plain", plain_paged_decode, tiled(layout, num_heads))
    assert worst(attention, layout, num_heads) < allowed(layout)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_flashinfers_arrays_give_what_tiles_give(flashinfer: FlashInferStandIn, dtype: str) -> None:
    layout = layout_of(dtype=dtype)
    assert worst(FlashInferAttention(layout, 8, CPU), layout, 8) < allowed(layout)
    assert flashinfer.planned == {"decode": 1, "prefill": 2}


def test_a_layers_pages_are_views_of_the_pool() -> None:
    """No copy and no other order: what kernels are told are the pool's own addresses."""
    layout = layout_of()
    cache = KvCache(layout, 4, CPU)
    keys, values = cache.pages(2)
    block = cache.blocks[1, 2]
    assert keys.shape == (4 + 2, 2, 16, 64)
    assert keys.stride() == values.stride() == (layout.block_bytes // 4, 16 * 64, 64, 1)
    assert keys[1].data_ptr() == block[0].data_ptr()
    assert values[1].data_ptr() == block[1].data_ptr()


def test_a_wrong_kernel_is_found_out() -> None:
    layout = layout_of()

    def off_by_one(q: Any, k: Any, v: Any, tables: Any, key_lens: Any, out: Any) -> None:
        plain_paged_decode(q, k, v, tables, (key_lens - 1).clamp(min=1), out)

    def not_a_number(*args: Any) -> None:
        args[-1].fill_(float("nan"))

    for kernel in (off_by_one, not_a_number):
        found = worst(PagedAttention("wrong", kernel, tiled(layout, 4)), layout, 4)
        assert found > allowed(layout)


class FakeDevices:
    """Every device has paged kernels; ``made`` names the ways that were tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **makers: Any) -> None:
        self.made: list[str] = []
        monkeypatch.setattr(attention_choice, "has_paged_kernels", lambda device: True)
        noting = {name: self._noting(name, make) for name, make in makers.items()}
        monkeypatch.setattr(attention_choice, "MAKERS", noting)

    def _noting(self, name: str, make: Any) -> Any:
        def noting(layout: KVLayout, num_heads: int, device: torch.device, plain: Any) -> Any:
            self.made.append(name)
            return make(layout, num_heads, device, plain)

        return noting


def absent(*_args: Any) -> Any:
    raise ImportError("no such library")


def good(layout: KVLayout, _heads: int, _device: torch.device, plain: Any) -> Any:
    return PagedAttention("good", plain_paged_decode, plain)


def wrong(layout: KVLayout, _heads: int, _device: torch.device, plain: Any) -> Any:
    return PagedAttention("wrong", lambda *args: args[-1].zero_(), plain)


def test_the_first_that_is_there_and_right_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = FakeDevices(monkeypatch, absent=absent, wrong=wrong, good=good, never=good)
    chosen = choose_attention("auto", layout_of(), 4, CPU)
    assert chosen.name.startswith("good, chunks attention rows")
    assert devices.made == ["absent", "wrong", "good"]


def test_where_none_is_there_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevices(monkeypatch, absent=absent)
    assert isinstance(choose_attention("auto", layout_of(), 4, CPU), TiledAttention)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("absent", "absent: ImportError: no such library"),
        ("wrong", "wrong: differs from the plain"),
    ],
)
def test_a_way_that_was_named_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    FakeDevices(monkeypatch, absent=absent, wrong=wrong)
    with pytest.raises(ConfigError, match=f"^attention: {problem}"):
        choose_attention(name, layout_of(), 4, CPU)


def test_a_cpu_has_tiles_and_nothing_else() -> None:
    assert isinstance(choose_attention("auto", layout_of(), 4, CPU), TiledAttention)
    for name in ("flashinfer", "triton"):
        with pytest.raises(ConfigError, match=f"^attention: {name}: .* not on cpu"):
            choose_attention(name, layout_of(), 4, CPU)


def test_what_flashinfer_lacks_is_named() -> None:
    assert unsupported(layout_of(dtype="bfloat16")) == ""
    assert unsupported(layout_of()) == "no kernels for float32"
    assert unsupported(layout_of(dtype="float16", head_dim=80)) == "no kernels for heads of 80"
