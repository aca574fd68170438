"""Whether a prompt is computed by the decode worker that generates its answer, or by another one.

Computed there (fused with its steps, engine/chunking.py) nothing has to move, but all who run
there wait for it. A short or mostly cached prompt may be worth that. Pure rules over predicted
seconds; the policy (policy.py) applies them in the same step in which it chooses and books. Not
covered: a prompt computed in part here and in part there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PrefillPlace(StrEnum):
    REMOTE = "always-remote"
    LOCAL = "always-local"
    ADAPTIVE = "adaptive"


class Where(StrEnum):
    """Where the prompt of a request was computed, and why if not by a prefill worker."""

    REMOTE = "remote"
    COLOCATED = "colocated"  # the mode of the whole service
    SHARED = "shared"  # beside another answer to the same prompt
    BY_OPTION = "local: always-local"
    SHORT = "local: short"
    CACHED = "local: cached"
    NO_PREFILL_WORKER = "local: no prefill worker"


@dataclass(frozen=True, slots=True)
class LocalLimits:
    """``max_tokens``: most uncached tokens of a prompt that are computed at a decode worker.

    ``is_strict``: a prompt that belongs to a prefill worker waits for one, is refused in the end,
    and is not computed elsewhere, if there is none.
    """

    prefill_place: PrefillPlace = PrefillPlace.REMOTE
    max_tokens: int = 256
    is_strict: bool = True


def local_reason(
    num_tokens: int, num_left: int, local_s: float, remote_s: float, limits: LocalLimits
) -> Where | None:
    """Why this prompt is computed at the decode worker; None: it is not.

    ``num_left`` of its ``num_tokens`` are not cached there. ``local_s``: until its first token, and
    what the others there lose by it, summed; ``remote_s``: until its first token from a prefill
    worker, and KV that is not hidden. Equal is remote: nobody who runs is disturbed then.
    """
    if num_left > limits.max_tokens or local_s >= remote_s:
        return None
    return Where.CACHED if 2 * num_left <= num_tokens else Where.SHORT
