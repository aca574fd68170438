"""``pdserve model info``: costs of a model (engine/modelfiles/costs.py) as a report for people."""

from __future__ import annotations

from typing import Any

from cluster.config import ModelConfig
from engine.modelfiles.costs import Card, Costs, cards, measure_cpu, model_costs
from pdserve.prepared import ModelConfig as ModelShape

_DEFAULT_CONTEXT_TOKENS = 2048


def cost_report(name: str, shape: ModelShape, options: ModelConfig) -> dict[str, Any]:
    """Everything that is printed, as plain values; amounts carry their unit in their name."""
    costs = model_costs(shape, options.dtype, options.weights)
    tokens = options.context_tokens or min(_DEFAULT_CONTEXT_TOKENS, shape.max_positions)
    found = [*cards(options.dtype).values(), measure_cpu()]
    return {
        "name": name,
        "architecture": shape.architecture,
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "dtype": options.dtype,
        "weights": options.weights,
        "num_parameters": costs.num_parameters,
        "estimate_12_l_d2_parameters": costs.estimate_parameters,
        "flops_per_token": costs.flops_per_token,
        "estimate_2_params_flops": 2 * costs.num_parameters,
        "weight_bytes": costs.weight_bytes,
        "kv_bytes_per_token": costs.kv_bytes_per_token,
        "context_tokens": tokens,
        "batch": options.batch,
        "memory_bytes": costs.memory_bytes(tokens, options.batch),
        "efficiency": options.efficiency,
        "cards": [_placed(costs, card, tokens, options) for card in found],
    }


def _placed(costs: Costs, card: Card, tokens: int, options: ModelConfig) -> dict[str, Any]:
    """Times are the roofline's: the longer of compute at full peak and memory traffic."""
    prefill = costs.prefill_flops(tokens), costs.prefill_bytes(tokens)
    decode = costs.decode_flops(tokens, options.batch), costs.decode_bytes(tokens, options.batch)
    rate = options.efficiency * card.flops_per_s
    return {
        "card": card.name,
        "flops_per_s": card.flops_per_s,
        "bytes_per_s": card.bytes_per_s,
        "ridge_flops_per_byte": card.ridge,
        "prefill": _roofline(card, *prefill),
        "decode": _roofline(card, *decode),
        "hiding_bits_per_s": 8 * costs.hiding_bytes_per_s(tokens, rate),
    }


def _roofline(card: Card, flops: float, num_bytes: float) -> dict[str, Any]:
    compute_s, memory_s = flops / card.flops_per_s, num_bytes / card.bytes_per_s
    return {
        "flops_per_byte": flops / num_bytes,
        "bound_by": "compute" if compute_s > memory_s else "memory",
        "time_s": max(compute_s, memory_s),
    }


def cost_table(report: dict[str, Any]) -> str:
    """Lines for people, of what ``cost_report`` gave."""
    gib, tokens, batch = 2**30, report["context_tokens"], report["batch"]
    lines = [
        f"{report['name']}: {report['architecture']}, {report['num_layers']} layers, hidden "
        f"{report['hidden_size']}, {report['num_heads']} heads of {report['head_dim']}, "
        f"{report['num_kv_heads']} KV heads, vocabulary {report['vocab_size']:,}",
        f"parameters      {report['num_parameters']:,} exactly; 12 L d^2 says "
        f"{report['estimate_12_l_d2_parameters']:,}",
        f"FLOP a token    {report['flops_per_token']:,} at an empty context; 2 x parameters says "
        f"{report['estimate_2_params_flops']:,}",
        f"KV cache        {report['kv_bytes_per_token']:,} bytes a token in {report['dtype']}",
        f"memory          {report['memory_bytes'] / gib:.2f} GiB for weights "
        f"({report['weight_bytes'] / gib:.2f}) and KV of {batch} x {tokens:,} tokens",
        "",
        f"roofline        prefill of {tokens:,} tokens; decode step of {batch} at that context",
    ]
    for each in report["cards"]:
        lines.append(
            f"  {each['card']}: {each['flops_per_s'] / 1e12:.3g} TFLOP/s, "
            f"{each['bytes_per_s'] / 1e9:.4g} GB/s, ridge {each['ridge_flops_per_byte']:.0f} FLOP/B"
        )
        for phase in ("prefill", "decode"):
            place = each[phase]
            lines.append(
                f"    {phase:<8}{place['flops_per_byte']:>8.1f} FLOP/B, bound by "
                f"{place['bound_by']}, at least {1e3 * place['time_s']:.4g} ms"
            )
        lines.append(
            f"    KV hides behind prefill from {each['hiding_bits_per_s'] / 1e9:.3g} Gb/s "
            f"(at {100 * report['efficiency']:.0f} % of the peak)"
        )
    return "\n".join(lines)
