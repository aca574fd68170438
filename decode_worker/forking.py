"""Another answer to a prompt that is here: its blocks shared, the one it writes on in copied.

    the other's   [ full | full | partly filled, and the answer ... ]
                     |      |       copied
    the new one's [ same | same | copy                ]

Full blocks of a prompt are never written again, so both hold them; the block in which the new
answer goes on is copied at once, up to the token that is sampled from, which is computed again for
its logits. Only between requests of one prompt and one cache salt, and only while the other runs;
after that the prefix cache has the full blocks. Not covered: devices whose memory the host does not
address; there the prefix cache alone shares.
"""

from __future__ import annotations

from collections.abc import Iterable

from decode_worker.leg import DecodeLeg, LegState
from engine.block_pool import BlockBuffers, BlockLease, BlockPool
from engine.prefix_cache import ContextClaim
from pdserve.prefix_keys import KeyChain
from pdserve.types import Attempt

_HAS_BLOCKS = frozenset({LegState.COMMITTED, LegState.PREFILLING, LegState.RUNNING})


class ForkClaim:
    """The blocks of an answer beside ``other``; like engine's ContextClaim, taken in one turn."""

    def __init__(
        self,
        pool: BlockPool,
        buffers: BlockBuffers,
        other: BlockLease,
        attempt: Attempt,
        chain: KeyChain | None,
    ) -> None:
        self.chain = chain
        self.num_known_tokens = _num_known(attempt)
        self.num_blocks = buffers.layout.num_blocks(attempt.num_context_tokens)
        self._pool = pool
        self._buffers = buffers
        self._other = other
        self._num_shared, self._num_copied_tokens = divmod(
            self.num_known_tokens, buffers.layout.block_size
        )

    @property
    def num_needed(self) -> int:
        """Free blocks that ``take`` would use up now."""
        return self.num_blocks - self._num_shared

    def take(self) -> BlockLease | None:
        """All blocks, the known ones with their content, or None and no change."""
        shared = self._other.block_ids[: self._num_shared]
        lease = self._pool.lease(self.num_blocks, shared)
        if lease is not None and self._num_copied_tokens:
            source = self._buffers.view(self._other.block_at(self._num_shared))
            self._buffers.view(lease.block_at(self._num_shared))[:] = source
        return lease


class Forking:
    """``enabled``: off, or on a device that the host does not address, nothing is ever forked."""

    def __init__(self, pool: BlockPool, buffers: BlockBuffers, *, enabled: bool) -> None:
        self._pool = pool
        self._buffers = buffers
        self._enabled = enabled and buffers.copier is None

    def claim(
        self, legs: Iterable[DecodeLeg], attempt: Attempt, plain: ContextClaim
    ) -> ContextClaim | ForkClaim:
        """Beside a leg that has the prompt, or ``plain`` if there is none."""
        other = _find_other(legs, attempt) if self._enabled else None
        if other is None:
            return plain
        return ForkClaim(self._pool, self._buffers, other.held.lease, attempt, plain.chain)


def _find_other(legs: Iterable[DecodeLeg], attempt: Attempt) -> DecodeLeg | None:
    """A leg that holds the KV of this attempt's prompt, and may share it."""
    request = attempt.request
    for leg in legs:
        other = leg.attempt.request
        if (
            leg.state in _HAS_BLOCKS
            and other.prompt_ids == request.prompt_ids
            and other.cache_salt == request.cache_salt
            and leg.held.num_computed >= _num_known(attempt)
        ):
            return leg
    return None


def _num_known(attempt: Attempt) -> int:
    """Tokens of the prompt that need not be computed: all, but for one that is sampled from."""
    return min(len(attempt.request.prompt_ids), attempt.num_context_tokens - 1)
