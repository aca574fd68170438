"""What the legs of a prefill worker amount to, for its status. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.types import WorkerStatus
from prefill_worker.leg import LegState, PrefillLeg


def load_of(legs: Iterable[PrefillLeg]) -> WorkerStatus:
    """The counts of sequences and tokens; blocks and steps are left at 0."""
    by_state: dict[LegState, list[PrefillLeg]] = {state: [] for state in LegState}
    for leg in legs:
        by_state[leg.state].append(leg)
    queued = by_state[LegState.WAITING] + by_state[LegState.QUEUED]
    computing = by_state[LegState.COMPUTING]
    exported = by_state[LegState.COMPUTED]
    return WorkerStatus(
        num_queued=len(queued),
        queued_tokens=sum(leg.sequence.num_uncomputed for leg in queued + computing),
        num_running=len(computing),
        running_tokens=sum(len(leg.sequence.token_ids) for leg in computing),
        num_exported=len(exported),
        exported_tokens=sum(leg.sequence.num_computed for leg in exported),
    )
