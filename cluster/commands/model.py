"""``pdserve model prepare M`` and ``pdserve model info M``. No torch is loaded."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from cluster.config import ModelConfig
from engine.modelfiles.prepare import ModelSummary, model_summary, prepare_model
from pdserve.config import build_config
from pdserve.flags import FlagParser


def run_model(argv: Sequence[str]) -> int:
    parser = FlagParser("pdserve model", "Prepare a model for serving, or describe it.")
    parser.add_positional("action", "what to do", choices=("prepare", "info"))
    parser.add_positional("model", "'smollm2', a Hugging Face folder or hub id, a GGUF file")
    parser.add_options("options", ModelConfig)
    sources = parser.parse(argv)
    config = build_config(ModelConfig, "model", sources)
    prepared = prepare_model(str(sources.flags["model"]), config.dtype, progress=_progress)
    if sources.flags["action"] == "prepare":
        print(prepared.folder)
        return 0
    summary = model_summary(prepared)
    print(json.dumps(dataclasses.asdict(summary), indent=1) if config.json else _table(summary))
    return 0


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
        "weights": f"{summary.weight_bytes / mib:,.1f} MiB",
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
