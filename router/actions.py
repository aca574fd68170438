"""What the state machine of a request (flight.py) asks the router to do. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.errors import PdserveError
from pdserve.types import TokenEvent
from router.barred_pairs import Pair
from router.legs import OpenLeg
from router.policy import WorkerRef


@dataclass(frozen=True, slots=True)
class CancelLeg:
    leg: OpenLeg
    reason: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """The next tokens of the client's stream."""

    tokens: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class Requeue:
    """Dispatch it again when there is room."""

    cause: str


@dataclass(frozen=True, slots=True)
class BlockWorker:
    """It answered Busy."""

    worker: WorkerRef


@dataclass(frozen=True, slots=True)
class BarPair:
    pair: Pair


@dataclass(frozen=True, slots=True)
class ClearPair:
    pair: Pair


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more will come. ``error`` is None if the last token was delivered."""

    error: PdserveError | None


Action = CancelLeg | Deliver | Requeue | BlockWorker | BarPair | ClearPair | End
