"""``pdserve model prepare M`` and ``pdserve model info M``. No torch is loaded.

``info`` of a shipped shape (llama-3-8b) or of a folder with a config.json alone needs no weights.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.config import ModelConfig
from cluster.cost_report import cost_report, cost_table
from engine.modelfiles.costs import shape_of
from engine.modelfiles.prepare import ModelSummary, model_summary, prepare_model
from pdserve.config import build_config
from pdserve.flags import FlagParser
from pdserve.prepared import ModelConfig as ModelShape


def run_model(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve model", "Prepare a model for serving, or describe it.")
    parser.add_positional("action", "what to do", choices=("prepare", "info"))
    parser.add_positional("model", "'smollm2', a Hugging Face folder or hub id, a GGUF file")
    parser.add_options("options", ModelConfig)
    sources = parser.parse(argv)
    config = build_config(ModelConfig, "model", sources)
    model = str(sources.flags["model"])
    if sources.flags["action"] == "info" and (shape := _shape_alone(model)) is not None:
        found = cost_report(model, shape, config)
        print(json.dumps(found, indent=1) if config.json else cost_table(found))
        return 0
    prepared = prepare_model(model, config.dtype, weights=config.weights, progress=_progress)
    if sources.flags["action"] == "prepare":
        print(prepared.folder)
        return 0
    summary = model_summary(prepared)
    found = cost_report(summary.name, prepared.config, config)
    if config.json:
        print(json.dumps({**dataclasses.asdict(summary), "costs": found}, indent=1))
    else:
        print(_table(summary), cost_table(found), sep="\n\n")
    return 0


def _shape_alone(model: str) -> ModelShape | None:
    """The shape where there are no weights to read beside it."""
    folder = Path(model).expanduser()
    has_weights = folder.is_dir() and any(folder.glob("*.safetensors"))
    return None if has_weights else shape_of(model)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _window(summary: ModelSummary) -> str:
    is_cut = summary.sliding_window_tokens == summary.max_positions_tokens
    return ", where its sliding window would begin to cut" if is_cut else ""


def _table(summary: ModelSummary) -> str:
    mib = 2**20
    context_mib = summary.kv_bytes_per_token * summary.max_positions_tokens / mib
    rows = {
        "name": summary.name,
        "source": summary.source,
        "fingerprint": summary.fingerprint,
        "architecture": summary.architecture,
        "parameters": f"{summary.num_parameters:,}",
        "dtype": summary.dtype,
        "weights": f"{summary.weight_bytes / mib:,.1f} MiB, {summary.weights}",
        "layers": f"{summary.num_layers}, hidden {summary.hidden_size}",
        "attention": f"{summary.num_heads} heads of {summary.head_dim}, "
        f"{summary.num_kv_heads} KV heads",
        "vocabulary": f"{summary.vocab_size:,}",
        "context": f"{summary.max_positions_tokens:,} tokens{_window(summary)}",
        "KV cache": f"{summary.kv_bytes_per_token:,} bytes a token, "
        f"{context_mib:,.0f} MiB a full context",
        "computation": f"{summary.flops_per_token / 1e6:,.1f} MFLOP a token, and "
        f"{summary.attention_flops_per_context_token:,} FLOP for each token of context",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
