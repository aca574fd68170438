"""What the legs of a prefill worker amount to, for its status. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.types import WorkerStatus
from prefill_worker.leg import LegState, PrefillLeg


def load_of(legs: Iterable[PrefillLeg]) -> WorkerStatus:
    """The counts of sequences and tokens; blocks and steps are left at 0."""
    num_queued = num_computing = num_exported = 0
    uncomputed = computing_tokens = exported_tokens = 0
    for leg in legs:
        state, sequence = leg.state, leg.sequence
        if state is LegState.COMPUTED:
            num_exported += 1
            exported_tokens += sequence.num_computed
        elif state is LegState.COMPUTING:
            num_computing += 1
            uncomputed += sequence.num_uncomputed
            computing_tokens += len(sequence.token_ids)
        elif state is not LegState.ENDED:
            num_queued += 1
            uncomputed += sequence.num_uncomputed
    return WorkerStatus(
        num_queued=num_queued,
        queued_tokens=uncomputed,
        num_running=num_computing,
        running_tokens=computing_tokens,
        num_exported=num_exported,
        exported_tokens=exported_tokens,
    )
