"""The pool with shared content against a naive model, walked at random.

The memory is simulated: each block has the tokens that were written last. Whatever the order of
claims, steps, pins and releases, a block that is taken as cached holds exactly what its claim says,
nobody's held block is ever written by another, free blocks add up, and what is evicted is what a
list kept by hand says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.block_pool import BlockPool
from engine.prefix_cache import ContextClaim, PrefixCache
from engine.sequence import Sequence
from pdserve.prefix_keys import PrefixKeys
from support.fake_engine import make_attempt

NUM_BLOCKS = 7
BLOCK = 2
Content = tuple[str, tuple[int, ...]]  # salt, and every token up to the end of the block

STREAMS = ((0,) * 9, (0, 0, 0, 0, 1, 1, 1, 1, 1), (1,) * 9)
contexts = st.builds(lambda stream, n: stream[:n], st.sampled_from(STREAMS), st.integers(1, 9))
picks = st.integers(0, 99)


@dataclass(eq=False)
class Live:
    """A sequence and what the naive model knows of it."""

    sequence: Sequence
    salt: str
    blocks: tuple[int, ...]
    num_pins: int = 0
    released: bool = False

    @property
    def holds(self) -> bool:
        return not self.released or self.num_pins > 0


@dataclass
class Naive:
    """Blocks as plain lists: what is free, in the order in which it is given away."""

    blank: list[int] = field(default_factory=lambda: list(range(NUM_BLOCKS)))  # next one first
    spare: list[int] = field(default_factory=list)  # next one first
    known: dict[int, Content] = field(default_factory=dict)
    holders: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(NUM_BLOCKS), 0))

    def find(self, contents: list[Content]) -> list[int]:
        found: list[int] = []
        for content in contents:
            blocks = [block for block, known in self.known.items() if known == content]
            if not blocks:
                break
            found += blocks
        return found

    def take(self, num_blocks: int, shared: list[int]) -> tuple[int, ...] | None:
        free = [block for block in self.blank + self.spare if block not in shared]
        num_new = num_blocks - len(shared)
        if num_new > len(free):
            return None
        new = free[:num_new]
        for block in new:
            self.known.pop(block, None)
        for block in shared + new:
            self.blank = [one for one in self.blank if one != block]
            self.spare = [one for one in self.spare if one != block]
            self.holders[block] += 1
        return tuple(shared + new)

    def give_back(self, blocks: tuple[int, ...]) -> None:
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block]:
                continue
            if block in self.known:
                self.spare.append(block)
            else:
                self.blank.insert(0, block)

    def store(self, block: int, content: Content) -> None:
        if block not in self.known and content not in self.known.values():
            self.known[block] = content

    def forget(self, content: Content) -> None:
        for block in [block for block, known in self.known.items() if known == content]:
            del self.known[block]
            if block in self.spare:
                self.spare.remove(block)
                self.blank.insert(0, block)


class PrefixPool(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.pool = BlockPool(NUM_BLOCKS)
        self.cache = PrefixCache(self.pool, BLOCK, PrefixKeys("model", BLOCK))
        self.naive = Naive()
        self.live: list[Live] = []
        self.memory: dict[int, Content] = {}
        self.held: list[tuple[ContextClaim, tuple[int, ...]]] = []

    @rule(context=contexts, salt=st.sampled_from(["", "other"]), samples=st.booleans())
    def arrive(self, context: tuple[int, ...], salt: str, samples: bool) -> None:
        """``samples``: as a prefill worker claims, which computes the last token at least."""
        attempt = make_attempt(context, cache_salt=salt)
        known = len(context) - samples
        claim = self.cache.claim(attempt, len(context), known)
        shared = self.naive.find(contents(salt, context, known // BLOCK))
        needed = claim.num_needed
        expected = self.naive.take(-(-len(context) // BLOCK), shared)
        num_free = self.pool.num_free
        lease = claim.take()
        assert (lease is None) == (expected is None) == (needed > num_free)
        if lease is None or expected is None:
            assert self.pool.num_free == num_free
            return
        assert (lease.block_ids, lease.num_cached) == (expected, len(shared))
        assert num_free - self.pool.num_free == needed
        for index, content in enumerate(contents(salt, context, lease.num_cached)):
            assert self.memory[lease.block_ids[index]] == content, "a hit on other content"
        sequence = Sequence(attempt, lease, claim.chain)
        sequence.num_computed = self.cache.num_cached_tokens(lease)
        self.live.append(Live(sequence, salt, expected))

    @rule(context=contexts, salt=st.sampled_from(["", "other"]))
    def hold(self, context: tuple[int, ...], salt: str) -> None:
        claim = self.cache.claim(make_attempt(context, cache_salt=salt), len(context), len(context))
        shared = self.naive.find(contents(salt, context, len(context) // BLOCK))
        claim.hold()
        assert claim.is_holding == bool(shared)
        assert self.naive.take(len(shared), shared) is not None
        self.held.append((claim, tuple(shared)))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def let_go(self, pick: int) -> None:
        claim, shared = self.held.pop(pick % len(self.held))
        claim.let_go()
        self.naive.give_back(shared)

    @rule(context=contexts, salt=st.sampled_from(["", "other"]))
    def run_to_the_end(self, context: tuple[int, ...], salt: str) -> None:
        before = len(self.live)
        self.arrive(context, salt, samples=True)
        for one in self.live[before:]:
            self._compute(one, len(context))
            self._release(one)

    @precondition(lambda self: any(not one.released for one in self.live))
    @rule(pick=picks, num_tokens=st.integers(1, 5))
    def compute(self, pick: int, num_tokens: int) -> None:
        self._compute(self._pick(pick), num_tokens)

    @precondition(lambda self: any(not one.released for one in self.live))
    @rule(pick=picks)
    def end(self, pick: int) -> None:
        one = self._pick(pick)
        self._compute(one, len(one.sequence.token_ids))
        self._release(one)

    @precondition(lambda self: any(not one.released for one in self.live))
    @rule(pick=picks, token=st.integers(0, 1))
    def generate(self, pick: int, token: int) -> None:
        """One more token, and a block for it if it needs one."""
        one = self._pick(pick)
        sequence = one.sequence
        if len(sequence.token_ids) % BLOCK == 0:
            expected = self.naive.take(1, [])
            assert sequence.lease.extend(1) == (expected is not None)
            if expected is None:
                return
            one.blocks += expected
            assert sequence.lease.block_ids == one.blocks
        sequence.append(token)

    @precondition(lambda self: any(not one.released for one in self.live))
    @rule(pick=picks)
    def fail(self, pick: int) -> None:
        sequence = self._pick(pick).sequence
        self.cache.forget(sequence)
        salt = sequence.attempt.request.cache_salt
        for content in contents(salt, sequence.token_ids, len(sequence.token_ids) // BLOCK):
            self.naive.forget(content)

    @precondition(lambda self: self.live)
    @rule(pick=picks)
    def pin(self, pick: int) -> None:
        one = self.live[pick % len(self.live)]
        one.sequence.lease.pin()
        one.num_pins += 1

    @precondition(lambda self: any(one.num_pins for one in self.live))
    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        pinned = [one for one in self.live if one.num_pins]
        one = pinned[pick % len(pinned)]
        one.sequence.lease.unpin()
        one.num_pins -= 1
        self._settle(one)

    @precondition(lambda self: any(not one.released for one in self.live))
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        self._release(self._pick(pick))

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = {block for one in self.live for block in one.blocks}
        held |= {block for _, shared in self.held for block in shared}
        assert self.pool.num_free == NUM_BLOCKS - len(held)
        assert self.pool.num_free == len(self.naive.blank) + len(self.naive.spare)
        assert self.pool.num_stored == len(self.naive.known)
        for one in self.live:
            others = [b for b in one.blocks if self.naive.holders[b] > 1]
            assert one.sequence.lease.num_shared == len(others)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for one in self.live:
            one.sequence.lease.release()
            for _ in range(one.num_pins):
                one.sequence.lease.unpin()
        for claim, _ in self.held:
            claim.let_go()
        assert self.pool.num_free == NUM_BLOCKS

    def _compute(self, one: Live, num_tokens: int) -> None:
        """A step that succeeds: content is written, then named."""
        sequence = one.sequence
        before, end = sequence.num_computed, len(sequence.token_ids)
        sequence.num_computed = min(before + num_tokens, end)
        for index in range(before // BLOCK, -(-sequence.num_computed // BLOCK)):
            if sequence.num_computed == before:
                break
            block = one.blocks[index]
            assert self.naive.holders[block] == 1, "a shared block was written"
            assert block not in self.naive.known, "known content was written over"
            self.memory[block] = one.salt, tuple(sequence.token_ids[: (index + 1) * BLOCK])
        self.cache.computed(sequence)
        num_full = sequence.num_computed // BLOCK
        for index, content in enumerate(contents(one.salt, sequence.token_ids, num_full)):
            if index >= sequence.lease.num_cached and index >= before // BLOCK:
                self.naive.store(one.blocks[index], content)

    def _release(self, one: Live) -> None:
        one.sequence.lease.release()
        one.released = True
        self._settle(one)

    def _pick(self, pick: int) -> Live:
        open_ones = [one for one in self.live if not one.released]
        return open_ones[pick % len(open_ones)]

    def _settle(self, one: Live) -> None:
        if not one.holds:
            self.live.remove(one)
            self.naive.give_back(one.blocks)


def contents(salt: str, token_ids: tuple[int, ...] | list[int], num_blocks: int) -> list[Content]:
    return [(salt, tuple(token_ids[: (index + 1) * BLOCK])) for index in range(num_blocks)]


TestPrefixPool = PrefixPool.TestCase
TestPrefixPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
