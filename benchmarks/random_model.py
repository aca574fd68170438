"""A model of a real one's shape with random weights, made where it will compute.

For speed and memory on a device: no file is read or written, so a 16 GB model is there in seconds.
Weights keep the variance of what goes through them, so that values stay finite in 16 bits. The
tokens mean nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.devices import parse_device
from engine.kv_cache import TORCH_DTYPES
from engine.model_runner import ModelRunner
from engine.modelfiles.costs import shape_of, shipped_shapes
from engine.modelfiles.tensor_plan import plan_tensors
from pdserve.prepared import ModelConfig, PreparedModel

SEED = 0


def shape_named(name: str) -> ModelConfig:
    """A shipped shape or a folder with a config.json; ends the program if it is neither."""
    shape = shape_of(name)
    if shape is None:
        raise SystemExit(f"--shape: {name!r} is no folder, nor of {', '.join(shipped_shapes())}")
    return shape


def prepared_model(name: str, shape: ModelConfig, dtype: str) -> PreparedModel:
    """As read from a folder, but without one."""
    return PreparedModel(
        folder=Path(), name=name, fingerprint="random.random", dtype=dtype, weights="full",
        source="random weights", config=shape, tensors={}, bos_token_id=None, eos_token_ids=(),
        adds_bos=False, num_parameters=sum(each.num_elements for each in plan_tensors(shape)),
    )  # fmt: skip


def random_weights(shape: ModelConfig, dtype: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Every tensor of a prepared model; on torch's device without data only their shapes."""
    torch_dtype = TORCH_DTYPES[dtype]
    generator = None
    if device != torch.device("meta"):
        generator = torch.Generator(device).manual_seed(SEED)
    weights = {}
    for planned in plan_tensors(shape):
        if len(planned.shape) == 1:
            weights[planned.name] = torch.ones(planned.shape, dtype=torch_dtype, device=device)
            continue
        made = torch.empty(planned.shape, dtype=torch_dtype, device=device)
        weights[planned.name] = made.normal_(
            std=1 / math.sqrt(planned.shape[1]), generator=generator
        )
    return weights


def open_random_runner(config: EngineConfig, shape_name: str, num_tokens: int) -> ModelRunner:
    """A warm runner of ``config``'s device, dtype and kernels with KV for ``num_tokens``.

    The C kernels are left out: they keep packed weights beside the model's files.
    """
    shape = shape_named(shape_name)
    device = parse_device(config.device)
    runner = ModelRunner(
        prepared_model(shape_name, shape, config.dtype),
        random_weights(shape, config.dtype, device),
        device=str(device),
        num_blocks=-(-num_tokens // config.block_size),
        block_size=config.block_size,
        num_threads=config.threads or 1,
        native="off",
        attention=config.attention,
        decode_graphs=config.decode_graphs == "on",
    )
    runner.warm_up()
    return runner
