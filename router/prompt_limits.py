"""Whether a prompt is within the model's limits; faults name the client's field."""

from __future__ import annotations

from pdserve.errors import ContextTooLong, InvalidRequest
from pdserve.types import ModelInfo


def check_prompt(prompt_ids: tuple[int, ...], model: ModelInfo, field: str) -> None:
    """Raises InvalidRequest naming the field."""
    if not prompt_ids:
        raise InvalidRequest(field, "must hold at least one token")
    if len(prompt_ids) >= model.max_model_len:
        raise ContextTooLong(
            field,
            f"{counted(len(prompt_ids), 'token')} leave no room for an answer in the context of "
            f"{model.max_model_len}",
        )
    check_token_ids(field, prompt_ids, model.vocab_size)


def answer_limit(num_prompt_tokens: int, max_tokens: int | None, model: ModelInfo) -> int:
    """``max_tokens``, or all that the context has room for. Raises ContextTooLong."""
    room = model.max_model_len - num_prompt_tokens
    if max_tokens is None:
        return room
    if max_tokens > room:
        raise ContextTooLong(
            "max_tokens",
            f"{counted(num_prompt_tokens, 'prompt token')} and {max_tokens} new ones are "
            f"{num_prompt_tokens + max_tokens}, more than the context of {model.max_model_len}",
        )
    return max_tokens


def counted(number: int, thing: str) -> str:
    """ "1 prompt token", "2 prompt tokens"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def check_token_ids(field: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    """Raises InvalidRequest naming the first id that the model does not have."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(field, f"token id {wrong} is outside [0, {vocab_size})")
