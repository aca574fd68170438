"""A prepared model written as the Hugging Face folder that peers read: the same numbers in float32.

Fused projections are cut apart again. Not covered: architectures other than "llama", rope scaling.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.modelfiles.weights import map_weights
from pdserve.prepared import PreparedModel


def write_folder(prepared: PreparedModel, folder: Path) -> Path:
    """``folder``, written if it is not there.

    Raises:
        SystemExit: the model is of a kind this does not write.
    """
    config = prepared.config
    if config.architecture != "llama" or config.rope_scaling.kind != "none":
        raise SystemExit(f"peers are given Llama models only, not {config.architecture!r}")
    if (folder / "config.json").exists():
        return folder
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = map_weights(prepared)
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    named = {
        "model.embed_tokens.weight": weights["embed"], "model.norm.weight": weights["norm"],
    }  # fmt: skip
    if not config.tied_embeddings:
        named["lm_head.weight"] = weights["lm_head"]
    for i in range(config.num_layers):
        layer = f"layers.{i}."
        q, k, v = weights[layer + "qkv"].split([queries, keys, keys])
        gate, up = weights[layer + "gate_up"].chunk(2)
        for name, tensor in {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
            "self_attn.o_proj": weights[layer + "o"], "mlp.gate_proj": gate, "mlp.up_proj": up,
            "mlp.down_proj": weights[layer + "down"],
            "input_layernorm": weights[layer + "input_norm"],
            "post_attention_layernorm": weights[layer + "post_norm"],
        }.items():  # fmt: skip
            named[f"model.{layer}{name}.weight"] = tensor
    copies = {name: tensor.float().contiguous().clone() for name, tensor in named.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(prepared.folder / "tokenizer.json", folder)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta, "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings, "torch_dtype": "float32",
        "bos_token_id": None, "eos_token_id": prepared.eos_token_ids[0],
    })  # fmt: skip
    return folder


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
