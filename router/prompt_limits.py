"""Whether a prompt is within the model's limits; faults name the client's field."""

from __future__ import annotations

from pdserve.errors import InvalidRequest
from pdserve.types import ModelInfo


def check_prompt(prompt_ids: tuple[int, ...], model: ModelInfo, field: str) -> None:
    """Raises InvalidRequest naming the field."""
    if not prompt_ids:
        raise InvalidRequest(field, "must hold at least one token")
    if len(prompt_ids) >= model.max_model_len:
        raise InvalidRequest(
            field,
            f"{len(prompt_ids)} tokens leave no room for an answer in the context of "
            f"{model.max_model_len}",
        )
    check_token_ids(field, prompt_ids, model.vocab_size)


def check_token_ids(field: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    """Raises InvalidRequest naming the first id that the model does not have."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidRequest(field, f"token id {wrong} is outside [0, {vocab_size})")
