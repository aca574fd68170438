"""Steps computed by torch: the plain twin of the C kernels, and the only way on a GPU.

Chooses the ways to multiply and to pad that leave rows alone (linear.py, attention.py), then lays
steps out for the model. Matrices of int8 blocks are turned into the model's dtype when it is
loaded: they save nothing here. Not covered: how long a step's phases take.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import torch

from engine.attention import choose_row_padding
from engine.batch_plan import plan_batch
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
    ) -> None:
        config = prepared.config
        weights = _in_full(prepared, weights)
        linears = [weights[f"layers.0.{name}"] for name in LINEAR_NAMES]
        linears.append(weights["embed" if config.tied_embeddings else "lm_head"])
        kernel = choose_kernel(linears, device)
        padding = choose_row_padding(config.head_dim, device)
        self.kernels = f"linear {kernel.name}, {padding}"
        self._cache = cache
        with torch.inference_mode():
            self._model = LlamaModel(
                config,
                weights,
                device=device,
                kernel=kernel,
                padding=padding,
                num_positions=num_positions,
            )

    def stage(self, rows: SequenceOf[StepRow]) -> StagedStep:
        plan = plan_batch(rows, self._cache.layout, self._cache.zero_block_id)
        return StagedStep(plan.sample_rows, lambda: self._model.forward(plan, self._cache))

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
