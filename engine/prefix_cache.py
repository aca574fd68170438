"""Reuse of KV between sequences: from the tokens of a context to blocks that hold it already.

    claim = cache.claim(attempt, num_tokens, max_cached_tokens)   # what the context wants
    lease = claim.take()                       # its blocks, those known first; or None, nothing
    sequence = Sequence(attempt, lease, claim.chain)
    sequence.num_computed = cache.num_cached_tokens(lease)
    cache.computed(sequence)                   # after each step: full blocks may be shared

``hold`` keeps what is known from being evicted before there is room for the rest. Used by both
roles; with the cache off every claim is a plain lease. Blocks and their eviction are
block_pool.py's, names of content pdserve/prefix_keys.py's. Not covered: disk, other hosts, partly
filled blocks.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from engine.block_pool import BlockLease, BlockPool
from engine.cache_feed import StoredBlocks
from engine.sequence import Sequence
from pdserve.prefix_keys import BlockKey, KeyChain, PrefixKeys
from pdserve.types import Attempt


class ContextClaim:
    """The blocks one context wants of the pool, as many as possible with their content.

    Whoever calls ``hold`` calls ``let_go`` or ``take`` in the end.
    """

    def __init__(
        self,
        pool: BlockPool,
        num_blocks: int,
        keys: SequenceOf[BlockKey] = (),
        chain: KeyChain | None = None,
    ) -> None:
        """``keys``: of the leading blocks that may be taken with their content."""
        self.num_blocks = num_blocks
        self.chain = chain
        self._pool = pool
        self._keys = keys
        self._held: BlockLease | None = None

    @property
    def num_needed(self) -> int:
        """Free blocks that ``take`` would use up now; those held are not among them."""
        found = self._pool.find(self._keys)
        return self.num_blocks - len(found) + self._pool.num_unheld(found)

    @property
    def is_holding(self) -> bool:
        return self._held is not None

    def hold(self) -> None:
        """Keep what is known now until ``let_go`` or ``take``."""
        assert self._held is None, "held twice"
        found = self._pool.find(self._keys)
        if found:
            self._held = self._pool.lease(len(found), found)

    def let_go(self) -> None:
        """A second call does nothing."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def take(self) -> BlockLease | None:
        """All blocks, with what is known by now, or None and no change."""
        lease = self._pool.lease(self.num_blocks, self._pool.find(self._keys))
        if lease is not None:
            self.let_go()
        return lease


class PrefixCache:
    """``keys`` None: off, nothing is ever found or kept."""

    def __init__(self, pool: BlockPool, block_size: int, keys: PrefixKeys | None) -> None:
        self._pool = pool
        self._block_size = block_size
        self._keys = keys

    def claim(self, attempt: Attempt, num_tokens: int, max_cached_tokens: int) -> ContextClaim:
        """For blocks of ``num_tokens`` tokens; of its context at most so many are taken as known.

        A context whose last token is to be sampled from must compute at least that one.
        """
        chain = None if self._keys is None else self._keys.chain(attempt.request.cache_salt)
        known = max(0, min(max_cached_tokens, attempt.num_context_tokens))
        return self._claim(chain, attempt.context_ids, num_tokens, known)

    def claim_again(self, sequence: Sequence) -> ContextClaim:
        """For a sequence that gave its blocks back: room for every token, the last to compute."""
        token_ids = sequence.token_ids
        return self._claim(sequence.chain, token_ids, len(token_ids), len(token_ids) - 1)

    def watch(self) -> StoredBlocks | None:
        """A feed of what is known from now on; None: off. Ends with its ``close``."""
        return None if self._keys is None else self._pool.index.watch()

    def num_cached_tokens(self, lease: BlockLease) -> int:
        return lease.num_cached * self._block_size

    def computed(self, sequence: Sequence) -> None:
        """The KV of its first ``num_computed`` tokens is right: full blocks may be shared."""
        num_full = sequence.num_computed // self._block_size
        if sequence.chain is not None and num_full > sequence.lease.num_stored:
            sequence.lease.store(sequence.chain.keys(sequence.token_ids, num_full), num_full)

    def forget(self, sequence: Sequence) -> None:
        """Its KV is not to be trusted: nobody else shall start from it."""
        if sequence.chain is not None:
            num_full = len(sequence.token_ids) // self._block_size
            self._pool.forget(sequence.chain.keys(sequence.token_ids, num_full))

    def _claim(
        self, chain: KeyChain | None, token_ids: SequenceOf[int], num_tokens: int, num_known: int
    ) -> ContextClaim:
        num_blocks = -(-num_tokens // self._block_size)
        if chain is None:
            return ContextClaim(self._pool, num_blocks)
        num_keys = num_known // self._block_size
        keys = chain.keys(token_ids, num_keys)[:num_keys]
        return ContextClaim(self._pool, num_blocks, keys, chain)


def build_prefix_cache(
    pool: BlockPool, block_size: int, fingerprint: str, *, enabled: bool
) -> PrefixCache:
    """The cache of one worker; ``fingerprint`` is the model's."""
    keys = PrefixKeys(fingerprint, block_size) if enabled else None
    return PrefixCache(pool, block_size, keys)
