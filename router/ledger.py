"""The ledger of one request: stamps of the router's clock, durations of the workers' clocks.

``timing`` cuts the span up to the first token, and the gap to the second, into parts that add up
by construction: what a worker measured is taken as far as it fits into the router's span, and the
``*_return`` part is what remains. Pure: every stamp is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.request_timing import RequestTiming
from pdserve.types import DecodeTiming, KvTiming, PrefillTiming, WorkerId
from router.local_prefill import Where


@dataclass(slots=True)
class _Stamps:
    """On the router's clock; None: has not happened."""

    started_s: float
    prefill_sent_s: float | None = None  # Submit of the prefill (or colocated) leg now under way
    first_token_s: float | None = None
    committed_s: float | None = None
    second_token_s: float | None = None
    ended_s: float | None = None


class Ledger:
    def __init__(self, started_s: float, tokenize_s: float, num_prompt_tokens: int) -> None:
        self._stamps = _Stamps(started_s)
        self._tokenize_s = tokenize_s
        self._num_prompt_tokens = num_prompt_tokens
        self._num_generated = 0
        self._num_dispatches = 0
        self._prefill: PrefillTiming | None = None
        self._kv = KvTiming()
        self._decode: DecodeTiming | None = None
        self._prefill_worker = ""
        self._where = ""
        self._explanation = ""
        self._decode_worker = ""
        self._first_epoch: int | None = None  # of the attempt that gave token 0
        self._whole: RequestTiming | None = None  # of a request that has ended

    @property
    def started_s(self) -> float:
        """When the request came, on the router's clock."""
        return self._stamps.started_s

    def dispatched(
        self,
        now_s: float,
        prefill: WorkerId,
        decode: WorkerId | None,
        *,
        keeps_prefill: bool = False,
        where: Where = Where.REMOTE,
    ) -> None:
        """An attempt was sent. ``keeps_prefill``: its prefill leg goes on from the one before."""
        self._num_dispatches += 1
        self._prefill_worker = prefill
        self._where = where.value
        self._decode_worker = decode or ""
        if self._stamps.first_token_s is None and not keeps_prefill:
            self._stamps.prefill_sent_s = now_s
            self._prefill = None
        if self._stamps.second_token_s is None:
            self._stamps.committed_s = None
            self._decode = None

    def delivered(self, now_s: float, index: int, epoch: int, num_tokens: int = 1) -> None:
        """The client's stream got so many tokens, at least one, from this index on."""
        self._num_generated = index + num_tokens
        if index == 0:
            self._stamps.first_token_s = now_s
            self._first_epoch = epoch
        if index <= 1 < index + num_tokens:
            self._stamps.second_token_s = now_s

    def prefill_measured(self, epoch: int, timing: PrefillTiming) -> None:
        """With FirstToken, after ``delivered``; counts if that attempt gave token 0."""
        if self._prefill is None and epoch == self._first_epoch:
            self._prefill = timing
            self._whole = None  # it comes after the end if the first token was the last

    def explained(self, text: str) -> None:
        """Why the attempt about to be sent goes where it goes; one after another."""
        self._explanation = f"{self._explanation}\n{text}" if self._explanation else text

    def exposed(self, now_s: float) -> tuple[WorkerId, float]:
        """The prefill worker, and how long ago its first token came (0: it has not)."""
        first_s = self._stamps.first_token_s
        return WorkerId(self._prefill_worker), 0.0 if first_s is None else now_s - first_s

    def committed(self, now_s: float, timing: KvTiming) -> None:
        self._kv = timing
        if self._stamps.second_token_s is None:
            self._stamps.committed_s = now_s

    def decode_measured(self, timing: DecodeTiming) -> None:
        """Before ``delivered`` of the tokens it came with; counts up to the second token."""
        if self._decode is None and self._stamps.second_token_s is None:
            self._decode = timing

    def ended(self, now_s: float) -> None:
        self._stamps.ended_s = now_s

    def timing(self, now_s: float) -> RequestTiming:
        """The ledger as it stands; parts whose time has not come are 0."""
        if self._stamps.ended_s is None:
            return self._timing(now_s)
        if self._whole is None:
            self._whole = self._timing(self._stamps.ended_s)
        return self._whole

    def _timing(self, end_s: float) -> RequestTiming:
        stamps = self._stamps
        queue_s, prefill_queue_s, prefill_compute_s, first_return_s = self._first_token_parts(end_s)
        exposed_s, decode_queue_s, first_step_s, return_s = self._first_gap_parts()
        return RequestTiming(
            tokenize_s=self._tokenize_s,
            queue_s=queue_s,
            prefill_queue_s=prefill_queue_s,
            prefill_compute_s=prefill_compute_s,
            first_token_return_s=first_return_s,
            kv_bytes=self._kv.num_bytes,
            kv_tokens=self._kv.num_tokens,
            kv_transport=self._kv.transport,
            kv_coding=self._kv.coding,
            kv_passed_over=self._kv.passed_over,
            kv_transfer_s=self._kv.transfer_s,
            kv_exposed_s=exposed_s,
            decode_queue_s=decode_queue_s,
            decode_first_step_s=first_step_s,
            token_return_s=return_s,
            total_s=self._tokenize_s + end_s - stamps.started_s,
            prefill_worker=self._prefill_worker,
            decode_worker=self._decode_worker,
            num_dispatches=self._num_dispatches,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated,
            prefill_cached_tokens=self.prefill_cached_tokens(),
            kv_cached_tokens=self._kv.num_cached_tokens,
            prefill_place=self._where,
            explanation=self._explanation,
        )

    def prefill_cached_tokens(self) -> int:
        """Of the prompt: an attempt's context may hold forced tokens beyond it."""
        cached = 0 if self._prefill is None else self._prefill.num_cached_tokens
        return min(cached, self._num_prompt_tokens)

    def _first_token_parts(self, end_s: float) -> tuple[float, float, float, float]:
        """(queue, prefill queue, prefill compute, return) of start -> first token."""
        stamps = self._stamps
        if stamps.first_token_s is None:
            sent_s = end_s if stamps.prefill_sent_s is None else stamps.prefill_sent_s
            return sent_s - stamps.started_s, 0.0, 0.0, 0.0
        assert stamps.prefill_sent_s is not None, "a token came before any dispatch"
        prefill = self._prefill or PrefillTiming()
        span_s = stamps.first_token_s - stamps.prefill_sent_s
        parts = _fit(span_s, prefill.queue_s, prefill.compute_s)
        return stamps.prefill_sent_s - stamps.started_s, *parts

    def _first_gap_parts(self) -> tuple[float, float, float, float]:
        """(exposed, decode queue, first step, return) of first token -> second token."""
        stamps = self._stamps
        if stamps.first_token_s is None or stamps.second_token_s is None:
            return 0.0, 0.0, 0.0, 0.0
        span_s = stamps.second_token_s - stamps.first_token_s
        exposed_s = 0.0
        if stamps.committed_s is not None:
            exposed_s = min(max(stamps.committed_s - stamps.first_token_s, 0.0), span_s)
        decode = self._decode or DecodeTiming()
        return exposed_s, *_fit(span_s - exposed_s, decode.queue_s, decode.first_step_s)


def _fit(span_s: float, first_s: float, second_s: float) -> tuple[float, float, float]:
    """Two measured parts of a span, as far as they fit, and the remainder."""
    first_s = min(max(first_s, 0.0), span_s)
    second_s = min(max(second_s, 0.0), span_s - first_s)
    return first_s, second_s, span_s - first_s - second_s
