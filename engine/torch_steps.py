"""Steps computed by torch: the plain twin of the C kernels, and the only way on a GPU.

Chooses the ways to multiply and to attend (linear.py, attention_choice.py), then lays steps out for
the model; on a device that can record, decode steps repeat a recording (decode_graphs.py). Matrices
of int8 blocks are turned into the model's dtype when it is loaded: they save nothing here. Not
covered: how long a step's phases take.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import torch

from engine.attention_choice import choose_attention
from engine.batch_plan import plan_batch
from engine.decode_graphs import DecodeGraphs
from engine.devices import open_recorder
from engine.kv_cache import TORCH_DTYPES, KvCache
from engine.linear import choose_kernel
from engine.model import LINEAR_NAMES, LlamaModel
from engine.modelfiles.tensor_plan import SCALES
from engine.modelfiles.weights import dequantised
from engine.step import StepRow
from engine.step_models import StagedStep
from pdserve.prepared import PreparedModel


class TorchSteps:
    """Satisfies ``StepModel``. Make it in the thread that will compute, its threads set."""

    def __init__(
        self,
        prepared: PreparedModel,
        weights: Mapping[str, torch.Tensor],
        cache: KvCache,
        device: torch.device,
        *,
        num_positions: int,
        attention: str = "auto",
        decode_graphs: bool = True,
    ) -> None:
        config = prepared.config
        weights = _in_full(prepared, weights)
        linears = [weights[f"layers.0.{name}"] for name in LINEAR_NAMES]
        linears.append(weights["embed" if config.tied_embeddings else "lm_head"])
        kernel = choose_kernel(linears, device)
        self._attention = choose_attention(attention, cache.layout, config.num_heads, device)
        self._cache = cache
        with torch.inference_mode():
            self._model = LlamaModel(
                config,
                weights,
                device=device,
                kernel=kernel,
                attention=self._attention,
                num_positions=num_positions,
            )
            self._graphs: DecodeGraphs | None = None
            recorder = open_recorder(device) if decode_graphs else None
            if recorder is not None:
                self._graphs = DecodeGraphs(
                    recorder, self._model, self._attention, cache, num_positions=num_positions
                )
        self.kernels = f"linear {kernel.name}, {self._attention.name}{self._recorded()}"

    def stage(self, rows: SequenceOf[StepRow]) -> StagedStep:
        layout, zero_block_id = self._cache.layout, self._cache.zero_block_id
        plan = plan_batch(rows, layout, zero_block_id, self._attention.grouped)
        graphs = self._graphs
        if graphs is not None and graphs.fits(plan):
            return StagedStep(plan.sample_rows, lambda: graphs.run(plan))
        return StagedStep(plan.sample_rows, lambda: self._model.forward(plan, self._cache))

    def _recorded(self) -> str:
        sizes = self._graphs.sizes if self._graphs is not None else ()
        return f", decode recorded to {sizes[-1]} rows" if sizes else ""

    def phase_seconds(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing to give back."""


def _in_full(
    prepared: PreparedModel, weights: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    if prepared.weights == "full":
        return weights
    dtype = TORCH_DTYPES[prepared.dtype]
    return {
        name: dequantised(weights, name, dtype) for name in weights if not name.endswith(SCALES)
    }
