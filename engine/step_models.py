"""What a model behind a runner offers, whoever computes: torch (torch_steps.py) or the C kernels
(native/native_steps.py). model_choice.py picks. Knows no sequences beyond the rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.step import StepRow


@dataclass(frozen=True, slots=True)
class StagedStep:
    """A step laid out. ``compute`` gives logits [len(sample_rows), vocab] float32, which may be
    edited and are valid until the next step; ``sample_rows`` are indices into the step's rows.

    ``best_ids``, where the kernels look for them anyway: after ``compute``, of each of the logits'
    rows the id of the highest, the lowest among equals."""

    sample_rows: tuple[int, ...]
    compute: Callable[[], torch.Tensor]
    best_ids: Callable[[], NDArray[np.int32]] | None = None


class StepModel(Protocol):
    """``stage`` on the event loop thread, ``compute`` in the engine thread, one step at a time."""

    @property
    def kernels(self) -> str:
        """For people: which kernels compute."""

    def stage(self, rows: SequenceOf[StepRow]) -> StagedStep: ...

    def phase_seconds(self) -> dict[str, float]:
        """Seconds in each phase of the steps since the last call; empty if not measured."""

    def close(self) -> None: ...
