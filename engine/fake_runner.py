"""A step runner without a model: real scheduling, real blocks, real KV bytes, invented tokens.

The "KV" of a position is a 64-bit hash of every token up to it, written into each layer's keys and
values; the next token is a hash of the last one. Before a step computes, it checks the KV it is
about to read: everything when it sees a lease for the first time (KV that came over the road or
out of parking), the last slot and one earlier slot afterwards. So tokens are right only if token
ids, positions, block tables and every transferred byte are right, and the same in every mode.
Steps take the time they are told to, on the injected clock.

``fake_tokens`` gives the same tokens without KV. Neither torch nor numpy is imported. Penalties,
truncation and logit bias do not change the tokens; prompts of any content are fine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from weakref import WeakKeyDictionary

from engine.block_pool import BlockCopier, BlockLease
from engine.fake_model import EOS_TOKEN_ID
from engine.sequence import Sequence
from engine.step import SampledToken, StepRow
from pdserve.clock import Clock
from pdserve.errors import EngineFailure
from pdserve.memory_file import MemoryFile
from pdserve.prepared import PreparedModel
from pdserve.types import KVLayout, SamplingParams, TokenLogprobs

_MASK = (1 << 64) - 1
_CHAIN_START = 0x9E3779B97F4A7C15
_FIRST_BYTE, _NUM_CHOICES = 32, 95  # printable ASCII
_EOS_ONE_IN = 64


def fake_tokens(
    prompt_ids: SequenceOf[int], sampling: SamplingParams, n: int | None = None
) -> list[int]:
    """What one plain loop generates for a prompt: at most ``n`` tokens, default max_tokens.

    Ends earlier after an end-of-sequence or stop token; the model's length limit is not applied.
    """
    chain = _extended([], prompt_ids)[-1]
    tokens: list[int] = []
    while len(tokens) < (sampling.max_tokens if n is None else n):
        token_id = _draw(chain, sampling, index=len(tokens))
        tokens.append(token_id)
        if len(tokens) >= sampling.min_tokens and token_id in _stop_ids(sampling):
            break
        chain = _mix(chain, token_id, len(prompt_ids) + len(tokens) - 1)
    return tokens


class FakeBuffers:
    """KV memory on the host, zero until written. Satisfies ``BlockBuffers``."""

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = "cpu"
        self.copier: BlockCopier | None = None
        self._file = MemoryFile(num_blocks * layout.block_bytes, "pdserve-kv")
        self.memory_fd = self._file.fd
        self._memory = self._file.view

    def view(self, block_id: int) -> memoryview:
        if not 0 <= block_id < self.num_blocks:
            raise IndexError(f"block {block_id} of {self.num_blocks}")
        start = block_id * self.layout.block_bytes
        return self._memory[start : start + self.layout.block_bytes]


class FakeRunner:
    """Satisfies ``StepRunner``. Times: microseconds a prompt token, milliseconds a decode step."""

    def __init__(
        self,
        prepared: PreparedModel,
        *,
        block_size: int,
        num_blocks: int,
        clock: Clock,
        dtype: str = "float32",
        prefill_us_per_token: float = 0.0,
        decode_step_ms: float = 0.0,
    ) -> None:
        config = prepared.config
        self.layout = KVLayout(
            config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype
        )
        self.buffers = FakeBuffers(self.layout, num_blocks)
        self.vocab_size = config.vocab_size
        self.eos_token_ids = prepared.eos_token_ids
        self.device = "fake"
        self._clock = clock
        self._prefill_s_per_token = prefill_us_per_token * 1e-6
        self._decode_step_s = decode_step_ms * 1e-3
        self._is_running = False
        # Chain hashes by position, kept with the lease: checking must not cost O(context) a step.
        self._chains: WeakKeyDictionary[BlockLease, list[int]] = WeakKeyDictionary()

    async def run(self, rows: SequenceOf[StepRow]) -> list[SampledToken | None]:
        """Check, take time, then write: a block given away too early is overwritten late and found.

        Raises:
            EngineFailure: the KV of a row's context is not what its token ids say.
        """
        if self._is_running:
            raise EngineFailure("a step was started while another one runs")
        self._is_running = True
        try:
            for row in rows:
                self._check_context(row)
            await self._clock.sleep(self._step_s(rows))
            return [self._compute(row) for row in rows]
        finally:
            self._is_running = False

    async def close(self) -> None:
        self._chains.clear()

    def _step_s(self, rows: Iterable[StepRow]) -> float:
        num_prompt_tokens = 0
        decodes = False
        for row in rows:
            if row.start < row.sequence.attempt.num_context_tokens:
                num_prompt_tokens += row.num_tokens
            else:
                decodes = True
        return num_prompt_tokens * self._prefill_s_per_token + self._decode_step_s * decodes

    def _check_context(self, row: StepRow) -> None:
        sequence, start = row.sequence, row.start
        if not 0 < row.num_tokens <= len(sequence.token_ids) - start:
            raise EngineFailure(f"{sequence.request_id}: {row.num_tokens} tokens at {start}")
        if self.layout.num_blocks(row.end) > sequence.lease.num_blocks:
            raise EngineFailure(f"{sequence.request_id}: no block for position {row.end - 1}")
        is_known = sequence.lease in self._chains
        chain = self._chain(sequence, row.end)
        if start == 0:
            return
        if is_known:
            for position in (start - 1, chain[start - 1] % start):
                self._check(sequence, position, chain[position : position + 1])
        else:
            self._check(sequence, 0, chain[:start])

    def _compute(self, row: StepRow) -> SampledToken | None:
        sequence = row.sequence
        chain = self._chain(sequence, row.end)
        self._write(sequence.lease, row.start, chain[row.start : row.end])
        if not row.samples:
            return None
        index = sequence.num_generated
        token_id = _draw(chain[row.end - 1], sequence.sampling, index)
        return SampledToken(token_id, _logprobs(token_id, sequence.sampling))

    def _chain(self, sequence: Sequence, end: int) -> list[int]:
        """Hashes of at least the first ``end`` positions."""
        chain = self._chains.setdefault(sequence.lease, [])
        return _extended(chain, sequence.token_ids[len(chain) : end])

    def _check(self, sequence: Sequence, start: int, hashes: list[int]) -> None:
        for view, run_start, run in self._runs(sequence.lease, start, hashes):
            for plane in range(_num_planes(self.layout)):
                found = view[self._place(plane, run_start, len(run))]
                if found == self._encode(plane, run):
                    continue
                wrong = next(
                    i for i, value in enumerate(run)
                    if view[self._place(plane, run_start + i, 1)] != self._encode(plane, [value])
                )  # fmt: skip
                raise EngineFailure(
                    f"KV of request {sequence.request_id} (epoch {sequence.attempt.epoch}) "
                    f"differs at position {run_start + wrong}, plane {plane}"
                )

    def _write(self, lease: BlockLease, start: int, hashes: list[int]) -> None:
        for view, run_start, run in self._runs(lease, start, hashes):
            for plane in range(_num_planes(self.layout)):
                view[self._place(plane, run_start, len(run))] = self._encode(plane, run)

    def _runs(
        self, lease: BlockLease, start: int, hashes: list[int]
    ) -> Iterable[tuple[memoryview, int, list[int]]]:
        """(block, first position, hashes of the positions that lie in this block)."""
        block_size = self.layout.block_size
        position, end = start, start + len(hashes)
        while position < end:
            run_end = min((position // block_size + 1) * block_size, end)
            view = self.buffers.view(lease.block_at(position // block_size))
            yield view, position, hashes[position - start : run_end - start]
            position = run_end

    def _place(self, plane: int, position: int, num_tokens: int) -> slice:
        """Bytes of a plane (one layer's keys or values of one head) within its block."""
        slot_bytes = self.layout.head_dim * self.layout.dtype_bytes
        first = plane * self.layout.block_size + position % self.layout.block_size
        return slice(first * slot_bytes, (first + num_tokens) * slot_bytes)

    def _encode(self, plane: int, hashes: list[int]) -> bytes:
        # Each plane has bytes of its own, so that swapped layers or keys for values are found.
        repeat = self.layout.head_dim * self.layout.dtype_bytes // 8
        mark = _mix(plane, 0, 0)
        return b"".join([(value ^ mark).to_bytes(8, "little") * repeat for value in hashes])


def _num_planes(layout: KVLayout) -> int:
    return layout.num_layers * 2 * layout.num_kv_heads


def _mix(state: int, token_id: int, position: int) -> int:
    """One round of splitmix64 (Steele, Lea, Flood 2014) over state, token and position."""
    value = (state + (token_id + 1) * 0xD1B54A32D192ED03 + (position << 40)) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _extended(chain: list[int], token_ids: SequenceOf[int]) -> list[int]:
    """Append the hashes of the positions after ``chain``; returns ``chain``."""
    state = chain[-1] if chain else _CHAIN_START
    for position, token_id in enumerate(token_ids, start=len(chain)):
        state = _mix(state, token_id, position)
        chain.append(state)
    return chain


def _stop_ids(sampling: SamplingParams) -> tuple[int, ...]:
    return sampling.stop_token_ids + (() if sampling.ignore_eos else (EOS_TOKEN_ID,))


def _draw(chain: int, sampling: SamplingParams, index: int) -> int:
    """Uniform over printable bytes, end of sequence one time in 64, what is masked passed over."""
    seed = sampling.seed + 1 if sampling.temperature > 0 else 0
    number = _mix(chain, seed, index)
    is_masked = index < sampling.min_tokens
    if number % _EOS_ONE_IN == 0 and not sampling.ignore_eos and not is_masked:
        return EOS_TOKEN_ID
    choice = (number >> 8) % _NUM_CHOICES
    if is_masked:
        for step in range(_NUM_CHOICES):
            token_id = _FIRST_BYTE + (choice + step) % _NUM_CHOICES
            if token_id not in sampling.stop_token_ids:
                return token_id
    return _FIRST_BYTE + choice


def _logprobs(token_id: int, sampling: SamplingParams) -> TokenLogprobs | None:
    """Of the draw above; the alternatives are the bytes that follow."""
    if sampling.num_logprobs is None:
        return None
    byte = math.log((1 - 1 / _EOS_ONE_IN) / _NUM_CHOICES)
    chosen = math.log(1 / _EOS_ONE_IN) if token_id == EOS_TOKEN_ID else byte
    offset = 0 if token_id == EOS_TOKEN_ID else token_id - _FIRST_BYTE
    others = [
        (_FIRST_BYTE + (offset + step) % _NUM_CHOICES, byte)
        for step in range(1, sampling.num_logprobs)
    ]
    top = [(token_id, chosen), *others][: sampling.num_logprobs]
    return TokenLogprobs(chosen, tuple(top))
