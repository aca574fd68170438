"""Names of tensors in a GGUF file, from Hugging Face's (llama.cpp's gguf-py/tensor_mapping).

The families of families.py agree on them. Knows no file.
"""

from __future__ import annotations

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
_MODEL_NAMES = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": HEAD,
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROTARY_NAMES = ("q_proj.weight", "k_proj.weight")


def to_gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` to ``blk.3.ffn_up.weight``."""
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def is_rotated(name: str) -> bool:
    """Whether rows of this tensor (Hugging Face's name) are turned by rope, head by head."""
    return name.endswith(_ROTARY_NAMES)
