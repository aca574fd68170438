"""How near a measured speed is to what a card could do: the roofline of ``pdserve model info``.

A prompt of n tokens or a decode step takes at least the longer of its FLOPs at the card's peak and
its bytes at the card's bandwidth. What is not counted: the start of kernels, several chunks reading
the weights again, norms and sampling; so 100 % is out of reach, and the more so the smaller the
model.
"""

from __future__ import annotations

from engine.modelfiles.costs import Card, Costs, cards


def card_named(name: str, dtype: str) -> Card:
    """Ends the program if there is none of that name."""
    found = cards(dtype)
    if name not in found:
        raise SystemExit(f"--card: {name!r} is none of {', '.join(found)}")
    return found[name]


def prefill_fraction(costs: Costs, card: Card, num_tokens: int, tokens_per_s: float) -> float:
    least_s = _least_s(card, costs.prefill_flops(num_tokens), costs.prefill_bytes(num_tokens))
    return least_s * tokens_per_s / num_tokens


def decode_fraction(
    costs: Costs, card: Card, context_tokens: int, batch: int, tokens_per_s: float
) -> float:
    """``tokens_per_s``: of all rows together."""
    flops = costs.decode_flops(context_tokens, batch)
    least_s = _least_s(card, flops, costs.decode_bytes(context_tokens, batch))
    return least_s * tokens_per_s / batch


def _least_s(card: Card, flops: float, num_bytes: float) -> float:
    return max(flops / card.flops_per_s, num_bytes / card.bytes_per_s)
