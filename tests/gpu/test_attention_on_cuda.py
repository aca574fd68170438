"""The ways to attend against the plain one on a CUDA device, and recorded steps against computed.

Never run so far (docs/gpu.md).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.attention import TiledAttention, choose_row_padding
from engine.attention_check import allowed, check_cache, difference
from engine.attention_choice import MAKERS
from engine.config import EngineConfig
from engine.devices import enter_device
from engine.flashinfer_attention import unsupported
from engine.model_runner import build_model_runner
from engine.modelfiles.prepare import prepare_model
from pdserve.types import KVLayout, SamplingParams
from support.model_steps import StepDriver
from support.tiny_llama import write_tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROMPTS = [list(range(3, 3 + length)) for length in (1, 16, 150, 5, 60)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("num_heads", "kv_heads", "head_dim"), [(32, 8, 128), (9, 3, 64)])
@pytest.mark.parametrize("name", list(MAKERS))
def test_kernels_agree_with_the_plain_twin(
    name: str, num_heads: int, kv_heads: int, head_dim: int, dtype: str
) -> None:
    layout = KVLayout(2, kv_heads, head_dim, 16, dtype)
    if name == "flashinfer":
        pytest.importorskip("flashinfer")
        if problem := unsupported(layout):
            pytest.skip(problem)
    device = torch.device("cuda", 0)
    enter_device(device)
    plain = TiledAttention(num_heads, choose_row_padding(head_dim, device))
    attention = MAKERS[name](layout, num_heads, device, plain)
    cache = check_cache(layout, device)
    assert difference(attention, plain, cache, num_heads) <= allowed(layout)
    cache.close()


@pytest.mark.parametrize("attention", ["triton", "torch"])
async def test_recorded_steps_give_the_same_tokens(tmp_path: Path, attention: str) -> None:
    folder = write_tiny_llama(tmp_path / "model", seed=1)
    prepared = prepare_model(str(folder), "float32", cache_dir=tmp_path)
    found = []
    for graphs in ("off", "on"):
        config = EngineConfig(
            device="cuda", kv_memory_mib=16.0, attention=attention, decode_graphs=graphs
        )
        runner = build_model_runner(config, prepared)
        assert ("decode recorded" in runner.kernels) is (graphs == "on" and attention != "torch")
        driver = StepDriver(runner)
        sequences = [driver.open(prompt, SamplingParams(max_tokens=9)) for prompt in PROMPTS]
        for sequence in sequences:
            await driver.prefill(sequence, 64)
        for count in (5, 5, 4, 3, 2, 1):
            await driver.decode(sequences[:count])
        found.append([sequence.token_ids for sequence in sequences])
        for sequence in sequences:
            sequence.lease.release()
        await runner.close()
    assert found[0] == found[1]
