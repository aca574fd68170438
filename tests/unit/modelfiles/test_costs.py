"""Costs of known shapes, against figures worked out and published elsewhere."""

from __future__ import annotations

import json

import pytest

from cluster.cli import main
from engine.modelfiles.costs import cards, model_costs, shape_of, shipped_shapes

# Exact counts of the published checkpoints.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-2-70b": 68_976_648_192,
    "llama-3-70b": 70_553_706_496,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
}
KV_KIB = {"llama-2-7b": 512, "llama-3-8b": 128, "llama-2-70b": 320, "llama-3-70b": 320,
          "qwen3-32b": 256, "smollm2-135m": 22.5}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_kv_of_shipped_shapes(name: str) -> None:
    shape = shape_of(name)
    assert shape is not None
    costs = model_costs(shape, "bfloat16")
    assert costs.num_parameters == PARAMETERS[name]
    assert costs.kv_bytes_per_token == KV_KIB[name] * 1024
    assert costs.memory_bytes(100, 3) == costs.weight_bytes + 300 * KV_KIB[name] * 1024


def test_every_shipped_shape_is_checked() -> None:
    assert set(shipped_shapes()) == set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "num_tokens", "gbits"),
    [
        ("llama-2-7b", 2048, 185), ("llama-2-7b", 8192, 165), ("llama-3-8b", 512, 44),
        ("llama-3-8b", 2048, 43), ("llama-3-8b", 8192, 39), ("llama-3-8b", 32768, 27.6),
        ("llama-3-70b", 2048, 11.1), ("qwen3-32b", 512, 20), ("qwen3-32b", 8192, 17.5),
    ],
)  # fmt: skip
def test_bandwidth_that_hides_the_transfer(name: str, num_tokens: int, gbits: float) -> None:
    """One H100 at 60 % of its peak."""
    shape = shape_of(name)
    assert shape is not None
    rate = 0.6 * cards("bfloat16")["H100"].flops_per_s
    found = model_costs(shape, "bfloat16").hiding_bytes_per_s(num_tokens, rate)
    assert 8 * found / 1e9 == pytest.approx(gbits, rel=0.03)


def test_places_on_the_roofline(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["model", "info", "llama-3-8b", "--dtype=bfloat16", "--context-tokens=4096"]
    assert main([*argv, "--batch=8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [card["card"] for card in report["cards"]]
    assert names[:3] == ["H100", "A100", "L4"]
    assert names[3].startswith("this CPU")
    for card in report["cards"][:3]:
        assert (card["prefill"]["bound_by"], card["decode"]["bound_by"]) == ("compute", "memory")
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "8,030,261,248 exactly; 12 L d^2 says 6,442,450,944" in text
    assert "KV hides behind prefill from" in text
