"""What a request changes in its logits before a token is chosen: penalties, bias, masks.

``plan_edits`` reads the sequence (on the event loop thread), ``edit_logits`` changes one row.
Repetition penalty as in CTRL (arXiv 1909.05858), over prompt and generated tokens; presence and
frequency penalty as OpenAI defines them, over generated tokens, forced ones included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.sequence import Sequence

Indices = NDArray[np.int64]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class LogitEdits:
    """Edits of one row, in order of application; token ids are distinct within each."""

    repeated_ids: Indices
    repetition_penalty: float
    generated_ids: Indices
    subtracted: Values  # presence + frequency * count, for generated_ids
    biased_ids: Indices
    bias: Values
    masked_ids: Indices


def plan_edits(
    sequence: Sequence, eos_token_ids: tuple[int, ...], vocab_size: int
) -> LogitEdits | None:
    """None if the request changes nothing for the next token. Ids outside the vocabulary drop."""
    sampling = sequence.sampling
    penalised = sampling.repetition_penalty != 1.0 or (
        sampling.presence_penalty or sampling.frequency_penalty
    )
    if not (
        penalised or sampling.logit_bias or sequence.num_generated < sampling.min_tokens
    ):  # most rows of most steps
        return None
    repeated, generated = np.empty(0, np.int64), np.empty(0, np.int64)
    subtracted = np.empty(0, np.float32)
    if sampling.repetition_penalty != 1.0:
        repeated = np.unique(np.array(sequence.token_ids, np.int64))
    if sampling.presence_penalty or sampling.frequency_penalty:
        new_ids = np.array(sequence.token_ids[sequence.num_prompt :], np.int64)
        generated, counts = np.unique(new_ids, return_counts=True)
        subtracted = (
            np.float32(sampling.presence_penalty)
            + np.float32(sampling.frequency_penalty) * counts.astype(np.float32)
        )  # fmt: skip
    bias = {token_id: value for token_id, value in sampling.logit_bias if token_id < vocab_size}
    masked: set[int] = set()
    if sequence.num_generated < sampling.min_tokens:
        masked.update(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            masked.update(eos_token_ids)
    masked_ids = sorted(token_id for token_id in masked if token_id < vocab_size)
    if not (len(repeated) or len(generated) or bias or masked_ids):
        return None
    return LogitEdits(
        repeated_ids=repeated,
        repetition_penalty=sampling.repetition_penalty,
        generated_ids=generated,
        subtracted=subtracted,
        biased_ids=np.array(list(bias), np.int64),
        bias=np.array(list(bias.values()), np.float32),
        masked_ids=np.array(masked_ids, np.int64),
    )


def edit_logits(line: torch.Tensor, edits: LogitEdits) -> None:
    """line: [vocab] float32, changed in place."""
    if len(edits.repeated_ids):
        ids = torch.from_numpy(edits.repeated_ids).to(line.device)
        values = line[ids]
        penalty = edits.repetition_penalty
        line[ids] = torch.where(values > 0, values / penalty, values * penalty)
    if len(edits.generated_ids):
        ids = torch.from_numpy(edits.generated_ids).to(line.device)
        line[ids] -= torch.from_numpy(edits.subtracted).to(line.device)
    if len(edits.biased_ids):
        ids = torch.from_numpy(edits.biased_ids).to(line.device)
        line[ids] += torch.from_numpy(edits.bias).to(line.device)
    if len(edits.masked_ids):
        line[torch.from_numpy(edits.masked_ids).to(line.device)] = -torch.inf
