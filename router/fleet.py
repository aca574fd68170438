"""The workers of a pool as columns of numbers, for a policy that looks at all of them at once.

A row is a worker; a worker whose view (``WorkerView``) is the same object as before costs nothing.
A worker that has not measured its steps yet is taken to cost what the others of its role do on
average; if none has, ``NOMINAL``. Knows no sessions. Not covered: more than numbers, such as who
can reach whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdserve.step_cost import DecodeCost, PrefillCost, StepCost
from pdserve.types import Role, WorkerId, WorkerLimits, WorkerStatus
from router.exposed import Exposed

Column = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

NOMINAL = StepCost(PrefillCost(1e-3, 1e-4, 0.0), DecodeCost(5e-3, 5e-4, 1e-8))


class WorkerRef(NamedTuple):
    """One session of one worker. A worker that comes back has another one."""

    worker_id: WorkerId
    incarnation: str
    session: int  # counts sessions of this router


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router knows of one worker: its last status and what was sent since."""

    ref: WorkerRef
    role: Role
    limits: WorkerLimits
    block_size: int  # tokens
    status: WorkerStatus
    unseen_blocks: int = 0  # booked by Submits that the last status does not count yet
    unseen_tokens: int = 0  # prompt tokens of those Submits
    unseen_legs: int = 0
    blocked: bool = False  # answered Busy, no report since
    draining: bool = False
    silent: bool = False  # no report for several heartbeats (silence.py)
    fingerprint: str = ""
    exposed: Exposed = Exposed()  # KV: prefill end to commit, as seen lately

    @property
    def free_blocks(self) -> int:
        return self.status.free_blocks - self.status.reserved_blocks - self.unseen_blocks

    @property
    def uncomputed_tokens(self) -> int:
        return self.status.queued_tokens + self.unseen_tokens

    @property
    def num_legs(self) -> int:
        status = self.status
        return status.num_queued + status.num_running + status.num_parked + self.unseen_legs


class Columns(NamedTuple):
    """One entry a worker; ``is_*`` are 0 or 1. Times in seconds."""

    is_prefill: Column
    is_open: Column  # takes new work as far as it says, and says so
    is_blocked: Column
    step_age_s: Column
    free_blocks: Column
    total_blocks: Column
    block_size: Column
    uncomputed_tokens: Column
    kv_tokens: Column  # of the contexts here, and of those on their way
    num_legs: Column
    max_legs: Column
    max_len: Column
    chunk_tokens: Column
    exposed_fixed_s: Column
    exposed_per_token_s: Column
    prefill_fixed_s: Column
    prefill_per_token_s: Column
    prefill_per_squared_token_s: Column
    decode_fixed_s: Column
    decode_per_sequence_s: Column
    decode_per_kv_token_s: Column


_FIRST_COST = Columns._fields.index("prefill_fixed_s")
_NUM_COSTS = 6
# Where the coefficients of each kind of step begin, and what stands in for them.
_TRIPLES = (
    (_FIRST_COST, NOMINAL.prefill.coefficients),
    (_FIRST_COST + 3, NOMINAL.decode.coefficients),
)
FEW_ROWS = 32  # up to which costs are filled in row by row; beyond, arrays are faster


class Fleet:
    """Rows in the order of the views. ``columns`` and ``rows`` hold the same numbers, to be read
    only: all workers at once, or one after the other."""

    def __init__(self) -> None:
        self.views: list[WorkerView] = []  # another list after each change: who keeps one may
        self._data = np.zeros((len(Columns._fields), 8))
        self._columns = Columns(*self._data[:, :0])
        self._unwritten: set[int] = set()  # rows whose numbers are not in ``_data`` yet
        self.rows: list[Sequence[float]] = []  # each in the order of ``Columns``
        self._told: list[tuple[float, ...]] = []  # as the workers say it: without estimates
        self.rows_of: dict[Role, list[int]] = {role: [] for role in Role}
        self.row_of: dict[WorkerRef, int] = {}
        self.is_measured = False  # both kinds of steps, by some worker
        self.spaces: dict[tuple[str, int], Rows] = {}  # (fingerprint, block size): whose hashes
        self._has_guesses = False  # some worker has not measured its steps

    @classmethod
    def of(cls, views: Sequence[WorkerView]) -> Fleet:
        fleet = cls()
        fleet.refresh(views)
        return fleet

    def __len__(self) -> int:
        return len(self.views)

    @property
    def columns(self) -> Columns:
        """Written when they are asked for: few workers are placed by their rows alone."""
        self._write()
        return self._columns

    def refresh(self, views: Sequence[WorkerView]) -> None:
        """Take over what is different."""
        changed = [
            row for row, (new, old) in enumerate(zip(views, self.views, strict=False))
            if new is not old
        ]  # fmt: skip
        same_workers = len(views) == len(self.views) and all(
            views[row].ref == self.views[row].ref for row in changed
        )
        if not changed and same_workers:
            return
        if not same_workers:
            changed = list(range(len(views)))
            self.rows = [()] * len(views)
            self._told = [()] * len(views)
            self._unwritten.clear()
        self.views = list(views)
        if len(views) > self._data.shape[1]:
            self._data = np.zeros((len(Columns._fields), 2 * len(views)))
        guessed = not same_workers or self._has_guesses
        for row in changed:
            self.rows[row] = self._told[row] = numbers = _numbers(views[row])
            guessed = guessed or not _is_measured(numbers)
        self._unwritten.update(changed)
        if not same_workers:
            self._renamed()
        if not guessed:
            return
        if len(views) <= FEW_ROWS:
            self._fill_in_rows()
        else:
            self._fill_in_costs()

    def ids(self, rows: Rows) -> list[WorkerId]:
        return [self.views[row].ref.worker_id for row in rows.tolist()]

    def named(self, worker_ids: frozenset[WorkerId]) -> Mask:
        """The rows of these workers."""
        mask = np.zeros(len(self.views), dtype=np.bool_)
        if worker_ids:
            for ref, row in self.row_of.items():
                mask[row] = ref.worker_id in worker_ids
        return mask

    def _write(self) -> None:
        for row in self._unwritten:
            self._data[:, row] = self.rows[row]
        self._unwritten.clear()

    def _renamed(self) -> None:
        self.row_of = {view.ref: row for row, view in enumerate(self.views)}
        self.rows_of = {
            role: [row for row, view in enumerate(self.views) if view.role is role] for role in Role
        }
        by_space: dict[tuple[str, int], list[int]] = {}
        for row, view in enumerate(self.views):
            by_space.setdefault((view.fingerprint, view.block_size), []).append(row)
        self.spaces = {space: np.array(rows) for space, rows in by_space.items()}

    def _fill_in_rows(self) -> None:
        """An estimate in place of what was not measured, in the rows; columns are made of them."""
        told = self._told
        estimates = [_estimate(told, first) for first, _ in _TRIPLES]
        self.is_measured, self._has_guesses = None not in estimates, False
        for row, numbers in enumerate(told):
            if _is_measured(numbers):
                continue
            self._has_guesses = True
            costs: list[float] = []
            for (first, nominal), estimate in zip(_TRIPLES, estimates, strict=True):
                three = numbers[first : first + 3]
                costs += three if any(three) else estimate or nominal
            self.rows[row] = (*numbers[:_FIRST_COST], *costs)
            self._unwritten.add(row)
        self._columns = Columns(*self._data[:, : len(told)])

    def _fill_in_costs(self) -> None:
        """``_fill_in_rows`` for many workers: makes the columns anew, and the rows of them."""
        self._write()
        data = self._data[:, : len(self.views)]
        filled = []
        self.is_measured, self._has_guesses = True, False
        for first, nominal in _TRIPLES:
            three = data[first : first + 3]
            known = three.any(axis=0)
            if known.all():
                filled += list(three)
                continue
            self._has_guesses = True
            rest = np.array(nominal)
            self.is_measured &= bool(known.any())
            if known.any():
                rest = three[:, known].mean(axis=1)
            filled += list(np.where(known, three, rest[:, None]))
        self._columns = Columns(*data[:_FIRST_COST], *filled)
        if self._has_guesses:
            self.rows = np.array(self.columns).T.tolist()


def _estimate(told: Sequence[tuple[float, ...]], first: int) -> list[float] | None:
    """What steps of one kind cost where they are measured, on average; None: nowhere."""
    known = [three for row in told if any(three := row[first : first + 3])]
    return [sum(values) / len(known) for values in zip(*known, strict=True)] if known else None


def _is_measured(numbers: Sequence[float]) -> bool:
    costs = numbers[_FIRST_COST : _FIRST_COST + _NUM_COSTS]
    return any(costs[:3]) and any(costs[3:])


def _numbers(view: WorkerView) -> tuple[float, ...]:
    """In the order of ``Columns``."""
    status, limits = view.status, view.limits
    return (
        view.role is Role.PREFILL,
        not (view.draining or status.draining or view.silent),
        view.blocked,
        status.step_age_s,
        view.free_blocks,
        limits.total_blocks,
        view.block_size,
        view.uncomputed_tokens,
        status.running_tokens + view.unseen_blocks * view.block_size,
        view.num_legs,
        limits.max_running,
        limits.max_model_len,
        limits.chunk_tokens,
        view.exposed.fixed_s,
        view.exposed.per_token_s,
        *status.cost.prefill.coefficients,
        *status.cost.decode.coefficients,
    )
