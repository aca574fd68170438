"""Steps computed by the C kernels: a model over its packed weights, one call into C a step.

``stage`` lays a step out as arrays on the event loop thread; what it returns computes in the engine
thread. Threads of the kernels are started once and sleep between steps. Knows neither sampling nor
the pool. Not covered: float16, sliding windows, partial rotation (``missing_support`` names them).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from engine.kv_cache import TORCH_DTYPES, KvCache
from engine.modelfiles.tensor_plan import SCALES
from engine.modelfiles.weights import dequantised
from engine.native.library import PHASES, Layer, Library, Linear, Model, Step
from engine.native.packed_weights import PackedWeights
from engine.rope import RopeTable
from engine.step import StepRow
from engine.step_models import StagedStep
from pdserve.errors import ConfigError, EngineFailure
from pdserve.log import event_log
from pdserve.prepared import ModelConfig, PreparedModel

logger = event_log(__name__)

LINEAR_NAMES = ("qkv", "o", "gate_up", "down")
_PADDING = 32  # floats; rows.h's padded()
_CHECK_ROWS = 29  # crosses the kernels' tiles of rows
_CHECK_OUTPUTS = 2048
_CHECK_TOLERANCE = 1e-4  # of the largest; both sum in float32 over the same elements

Ints = NDArray[np.int32]


class NativeSteps:
    """Satisfies ``StepModel``. ``close`` once, when no step runs.

    ``weights`` as pdserve/prepared.py names them; they are read while packing, ``embed`` and the
    norms as long as this object lives. The constructor must run in the thread that will compute, so
    that the kernels' threads inherit its cores.

    Raises:
        ConfigError: the kernels multiply wrongly here, or there is no memory for them.
    """

    def __init__(
        self,
        library: Library,
        prepared: PreparedModel,
        weights: Mapping[str, torch.Tensor],
        cache: KvCache,
        *,
        num_threads: int,
        num_positions: int,
    ) -> None:
        config = prepared.config
        self._library = library
        self._vocab_size = config.vocab_size
        self._keep: list[torch.Tensor] = []  # what C points to
        head_name = "embed" if config.tied_embeddings else "lm_head"
        names = [f"layers.{i}.{name}" for i in range(config.num_layers) for name in LINEAR_NAMES]
        self._packed = PackedWeights(library, prepared, weights, (*names, head_name))
        for name in (*names[:2], names[3], head_name):
            _check_products(library, self._packed.linear(name), weights, name, prepared.dtype)
        self._logits = torch.empty((0, config.vocab_size))
        self._best = np.empty(0, np.int32)
        model = self._model(config, weights, cache, num_positions, head_name)
        # What torch still does in this thread (sampling) stays in it: threads of its own would spin
        # on the cores of the kernels' for milliseconds after each call.
        torch.set_num_threads(1)
        self._engine = library.open(ctypes.byref(model), num_threads)
        if not self._engine:
            raise ConfigError(f"native: no memory for {num_threads} threads' scratch")

    @property
    def kernels(self) -> str:
        return f"native {self._library.instructions}"

    def stage(self, rows: SequenceOf[StepRow]) -> StagedStep:
        arrays = _lay_out(rows)
        sample_rows = tuple(index for index, row in enumerate(rows) if row.samples)
        return StagedStep(
            sample_rows, lambda: self._compute(arrays), lambda: self._best[: len(sample_rows)]
        )

    def phase_seconds(self) -> dict[str, float]:
        """Time in each phase since the last call, as the first thread saw it."""
        seconds = (ctypes.c_double * len(PHASES))()
        self._library.phase_seconds(self._engine, seconds)
        return dict(zip(PHASES, seconds, strict=True))

    def close(self) -> None:
        self._library.close(self._engine)
        self._engine = None

    def _compute(self, arrays: _StepArrays) -> torch.Tensor:
        """Logits [sampled tokens, vocab] float32, valid until the next step."""
        num_sampled = len(arrays.sampled)
        if num_sampled > self._logits.shape[0]:
            self._logits = torch.empty((num_sampled, self._vocab_size))
            self._best = np.empty(num_sampled, np.int32)
        step = Step(
            len(arrays.token_ids), len(arrays.first), num_sampled,
            arrays.token_ids.ctypes.data, arrays.first.ctypes.data, arrays.start.ctypes.data,
            arrays.count.ctypes.data, arrays.tables.ctypes.data, arrays.table_of.ctypes.data,
            arrays.sampled.ctypes.data, self._logits.data_ptr(),
            self._best.ctypes.data,
        )  # fmt: skip
        if self._library.forward(self._engine, ctypes.byref(step)):
            raise EngineFailure(f"no memory for a step of {len(arrays.token_ids)} tokens")
        return self._logits[:num_sampled]

    def _model(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        cache: KvCache,
        num_positions: int,
        head_name: str,
    ) -> Model:
        rope = RopeTable(config, num_positions, torch.device("cpu"))
        self._layers = (Layer * config.num_layers)(
            *(self._layer(weights, f"layers.{i}.") for i in range(config.num_layers))
        )
        return Model(
            hidden=config.hidden_size, intermediate=config.intermediate_size,
            num_layers=config.num_layers, num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads, head_dim=config.head_dim, vocab=config.vocab_size,
            block_size=cache.layout.block_size, rms_norm_eps=config.rms_norm_eps,
            score_scale=1.0 / math.sqrt(config.head_dim), layers=self._layers,
            lm_head=self._packed.linear(head_name), norm=self._floats(weights["norm"]),
            **self._embedding(weights), cos=self._pointer(rope.cos),
            signed_sin=self._pointer(rope.signed_sin), kv=self._pointer(cache.blocks),
        )  # fmt: skip

    def _embedding(self, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
        embed = self._pointer(weights["embed"])
        if weights["embed"].dtype != torch.int8:
            return {"embed": embed}
        return {
            "embed_values": embed,
            "embed_scales": self._pointer(weights["embed" + SCALES]),
        }

    def _layer(self, weights: Mapping[str, torch.Tensor], prefix: str) -> Layer:
        optional = {
            name: self._floats(weights[prefix + name]) if prefix + name in weights else None
            for name in ("qkv_bias", "q_norm", "k_norm")
        }
        return Layer(
            **{name: self._packed.linear(prefix + name) for name in LINEAR_NAMES},
            input_norm=self._floats(weights[prefix + "input_norm"]),
            post_norm=self._floats(weights[prefix + "post_norm"]),
            **optional,
        )

    def _floats(self, vector: torch.Tensor) -> int:
        """Address of the vector in float32, with zeros behind it."""
        return self._pointer(F.pad(vector.float(), (0, -len(vector) % _PADDING)))

    def _pointer(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class _StepArrays:
    """native.h's Step, row by row in the order given."""

    token_ids: Ints
    first: Ints
    start: Ints
    count: Ints
    tables: Ints
    table_of: Ints
    sampled: Ints


def _lay_out(rows: SequenceOf[StepRow]) -> _StepArrays:
    token_ids: list[int] = []
    tables: list[int] = []
    first, table_of = [], []
    for row in rows:
        first.append(len(token_ids))
        table_of.append(len(tables))
        token_ids.extend(row.sequence.token_ids[row.start : row.end])
        tables.extend(row.sequence.lease.block_ids)
    sampled = [at + row.num_tokens - 1 for at, row in zip(first, rows, strict=True) if row.samples]
    return _StepArrays(
        np.array(token_ids, np.int32),
        np.array(first, np.int32),
        np.array([row.start for row in rows], np.int32),
        np.array([row.num_tokens for row in rows], np.int32),
        np.array(tables, np.int32),
        np.array(table_of, np.int32),
        np.array(sampled, np.int32),
    )


def _check_products(
    library: Library, linear: Linear, weights: Mapping[str, torch.Tensor], name: str, dtype: str
) -> None:
    """The kernels against torch on a few rows: a miscompiled library must not serve."""
    generator = torch.Generator().manual_seed(0)
    weight = dequantised(weights, name, torch.float32)[:_CHECK_OUTPUTS]
    part = Linear(linear.panels, *weight.shape, linear.is_int8)
    x = torch.randn(_CHECK_ROWS, weight.shape[1], generator=generator).to(TORCH_DTYPES[dtype])
    out = torch.empty(_CHECK_ROWS, weight.shape[0])
    status = library.multiply(ctypes.byref(part), x.data_ptr(), _CHECK_ROWS, out.data_ptr())
    expected = x.float() @ weight.T
    error = float((out - expected).abs().max() / expected.abs().max())
    if status or not error < _CHECK_TOLERANCE:
        raise ConfigError(f"native: products with {name} are off by {error:.2g}")
