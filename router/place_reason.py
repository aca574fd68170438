"""Why a prompt was computed by a prefill worker, or by the decode worker that answers, in words."""

from __future__ import annotations

from router.local_prefill import PrefillPlace, Where
from router.policy import Colocated, LocalOffer, Look, Placement, local_offer

_FIXED = {
    Where.COLOCATED: "mode colocated",
    Where.SHARED: "another answer to the same prompt has its KV there",
    Where.BY_OPTION: "prefill_place always-local",
    Where.NO_PREFILL_WORKER: "no prefill worker, without_prefill_worker local",
}


def place_reason(decision: Placement | Colocated, look: Look) -> str:
    """``look``: what the decision was made from."""
    limits, demand = look.limits.local, look.demand
    if isinstance(decision, Colocated):
        fixed, offer = _FIXED.get(decision.where), local_offer(look)
        return fixed or ("" if offer is None else f"adaptive: {_weighed(offer)}")
    if demand.redeem_at is not None:
        return f"{demand.redeem_at.worker_id} holds its KV already"
    if limits.prefill_place is not PrefillPlace.ADAPTIVE:
        return f"prefill_place {limits.prefill_place.value}"
    offer = local_offer(look)
    if offer is None:
        return "adaptive: no decode worker had room for the prompt"
    if offer.num_left > limits.max_tokens:
        return (
            f"adaptive: {offer.num_left} tokens not cached at {offer.worker.worker_id},"
            f" local_prefill_tokens {limits.max_tokens}"
        )
    return f"adaptive: {_weighed(offer)}"


def _weighed(offer: LocalOffer) -> str:
    return (
        f"{offer.local_s * 1e3:.2f} ms for all at {offer.worker.worker_id},"
        f" {offer.remote_s * 1e3:.2f} ms at a prefill worker"
    )
