"""A step runner that only takes time: steps last what a fitted cost says, KV is zeros of any shape.

For loading router, protocol and transport without a model, and for planning capacity: give it the
coefficients of a card (``StepCost``) and the KV shape of a model, and the service behaves as if it
had both. The text is a fixed round of letters that depends on the place in the answer alone, so a
retried stream goes on as it began. Unlike the fake engine (fake_runner.py) it checks nothing: it
spends next to no processor time of its own.

A step of prompt and decode rows together costs the sum of both: no overlap is assumed. Not covered:
sampling parameters (greedy is assumed), end of sequence, noise of step times.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.fake_runner import FakeBuffers
from engine.step import SampledToken, StepRow
from pdserve.clock import Clock
from pdserve.errors import EngineFailure
from pdserve.prepared import PreparedModel
from pdserve.step_cost import StepCost
from pdserve.types import KVLayout, TokenLogprobs

_FIRST_LETTER, _NUM_LETTERS = ord("a"), 26


def simulated_token(index: int) -> int:
    """The token with this index of any answer."""
    return _FIRST_LETTER + index % _NUM_LETTERS


class SimulatedRunner:
    """Satisfies ``StepRunner``. ``layout``: the KV that is leased and shipped."""

    def __init__(
        self,
        prepared: PreparedModel,
        layout: KVLayout,
        *,
        num_blocks: int,
        cost: StepCost,
        clock: Clock,
    ) -> None:
        self.layout = layout
        self.buffers = FakeBuffers(layout, num_blocks)
        self.vocab_size = prepared.config.vocab_size
        self.eos_token_ids = prepared.eos_token_ids
        self.device = "simulated"
        self._cost = cost
        self._clock = clock
        self._is_running = False

    async def run(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]:
        """Raises EngineFailure if a step is started while another one runs."""
        if self._is_running:
            raise EngineFailure("a step was started while another one runs")
        self._is_running = True
        try:
            await self._clock.sleep(step_seconds(self._cost, rows))
            return [_sampled(row) for row in rows]
        finally:
            self._is_running = False

    async def close(self) -> None:
        """Nothing is held beyond the buffers."""


def step_seconds(cost: StepCost, rows: SequenceOf[StepRow]) -> float:
    """What a step of these rows takes; 0 of none."""
    batch = kv_tokens = 0
    seconds = 0.0
    for row in rows:
        if row.start < row.sequence.attempt.num_context_tokens:
            seconds += cost.prefill.seconds(row.start, row.end)
        else:
            batch += 1
            kv_tokens += row.end
    return seconds + (cost.decode.seconds(batch, kv_tokens) if batch else 0.0)


def _sampled(row: StepRow) -> SampledToken | None:
    if not row.samples:
        return None
    token_id = simulated_token(row.sequence.num_generated)
    wanted = row.sequence.sampling.num_logprobs
    logprobs = None if wanted is None else TokenLogprobs(0.0, ((token_id, 0.0),)[:wanted])
    return SampledToken(token_id, logprobs)
