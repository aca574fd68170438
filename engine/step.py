"""One engine step as a value, and what a runner of steps must offer.

A step is a list of rows; each row computes a run of tokens of one sequence and may sample the
token after it. Prefill chunks and decode tokens are the same thing with other lengths, so fused
batches (colocated mode) need nothing extra. Rows and results are tuples by name: a decode worker
makes one of each a token. Runners: model_runner.py (torch), fake_runner.py.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, Protocol

from engine.block_pool import BlockBuffers
from engine.sequence import Sequence
from pdserve.types import KVLayout, TokenLogprobs


class StepRow(NamedTuple):
    """Compute ``sequence.token_ids[start : start + num_tokens]`` into its lease's blocks.

    ``start == sequence.num_computed``. With ``samples`` the run ends at the last known token and
    the token of index ``sequence.num_generated`` is sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class SampledToken(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None = None


class StepRunner(Protocol):
    """A model on one device with its KV pool. One step at a time.

    ``run`` returns one entry a row, None where the row does not sample. It never changes the
    sequences; it may raise EngineFailure, after which the rows' KV is undefined. The event loop
    stays free while a step runs.
    """

    @property
    def layout(self) -> KVLayout: ...

    @property
    def buffers(self) -> BlockBuffers: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> str:
        """For people: "cpu, 1 thread"."""

    async def run(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]: ...

    async def close(self) -> None: ...
