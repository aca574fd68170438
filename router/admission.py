"""Whether a request may enter: against the model, against the workers, against its deadline.

Pure: views and times are passed in. The estimate of the wait is the plainest one that holds:
prompt tokens ahead divided by the prefill speed seen lately.
"""

from __future__ import annotations

from collections.abc import Sequence

from pdserve.errors import ContextTooLong, InvalidRequest, Overloaded
from pdserve.types import ModelInfo, Request, Role
from router.policy import WorkerView
from router.prompt_limits import counted

_SMOOTHING = 0.1  # weight of the newest prompt in the speed
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


class PrefillSpeed:
    """Prompt tokens a second that one prefill worker computes, smoothed over prompts."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._spent_s = 0.0

    def observe(self, num_tokens: int, compute_s: float) -> None:
        if compute_s <= 0:
            return
        weight = _SMOOTHING if self._spent_s else 1.0
        self._num_tokens += weight * (num_tokens - self._num_tokens)
        self._spent_s += weight * (compute_s - self._spent_s)

    @property
    def tokens_per_s(self) -> float | None:
        """None until a prompt has been computed."""
        return self._num_tokens / self._spent_s if self._spent_s else None


def estimated_wait_s(
    num_tokens_ahead: int, num_workers: int, tokens_per_s: float | None
) -> float | None:
    """Time until that many prompt tokens are computed; None if nothing is known."""
    if tokens_per_s is None or num_workers == 0:
        return None
    return num_tokens_ahead / (tokens_per_s * num_workers)


def retry_after_s(wait_s: float | None) -> float:
    if wait_s is None:
        return MIN_RETRY_AFTER_S
    return min(max(wait_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def check_deadline(request: Request, now_s: float, wait_s: float | None) -> None:
    """Raises:
    Overloaded: the first token cannot come before the request's deadline.
    """
    if request.deadline_s is None or wait_s is None:
        return
    left_s = request.deadline_s - now_s
    if wait_s > left_s:
        raise Overloaded(
            f"about {wait_s:.1f} s of work are ahead, the deadline is in {max(left_s, 0.0):.1f} s",
            retry_after_s=retry_after_s(wait_s - left_s),
        )


def check_model(request: Request, model: ModelInfo) -> None:
    """Raises:
    InvalidRequest: a token id or a length is out of the model's range.
    """
    for name, ids in (
        ("prompt", request.prompt_ids),
        ("stop_token_ids", request.sampling.stop_token_ids),
        ("logit_bias", tuple(token_id for token_id, _ in request.sampling.logit_bias)),
    ):
        if ids and not (min(ids) >= 0 and max(ids) < model.vocab_size):
            wrong = next(token_id for token_id in ids if not 0 <= token_id < model.vocab_size)
            raise InvalidRequest(name, f"token id {wrong} is not in [0, {model.vocab_size - 1}]")
    num_prompt, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
    if num_prompt + max_tokens > model.max_model_len:
        raise ContextTooLong(
            "max_tokens",
            f"{counted(num_prompt, 'prompt token')} and {max_tokens} to generate are more than the"
            f" context of {model.max_model_len} tokens",
        )


def prompt_workers(workers: Sequence[WorkerView], usual: Role, else_role: Role) -> list[WorkerView]:
    """Those who compute prompts: of the usual role, of the other one where there is none."""
    found = [view for view in workers if view.role is usual]
    return found or [view for view in workers if view.role is else_role]


def servable_len(model_len: int, workers: Sequence[WorkerView], roles: Sequence[Role]) -> int:
    """Longest context, prompt and generated, that the joined workers can take when empty.

    A role without workers does not count: its workers are still to come.
    """
    longest = model_len
    for role in roles:
        lengths = [
            min(view.limits.max_model_len, view.limits.total_blocks * view.block_size)
            for view in workers
            if view.role is role
        ]
        if lengths:
            longest = min(longest, max(lengths))
    return longest
