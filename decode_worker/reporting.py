"""Which event a sampled token becomes. Knows legs and events, decides nothing about blocks."""

from __future__ import annotations

from decode_worker.leg import DecodeLeg
from engine.loop import StepTiming
from engine.sequence import finish_reason
from engine.step import SampledToken
from pdserve.messages import FirstToken, Tokens
from pdserve.types import DecodeTiming, FinishReason, Leg, PrefillTiming, TokenEvent


def report_tokens(
    leg: DecodeLeg,
    sampled: SampledToken,
    timing: StepTiming,
    eos_token_ids: tuple[int, ...],
    max_model_len: int,
) -> FinishReason | None:
    """Emit the event of a token just appended to the leg's sequence; returns its finish reason.

    A colocated leg's first token is a FirstToken with the prefill's timing; everything else is a
    Tokens, the first of them with the decode timing.
    """
    sequence = leg.held
    finish = finish_reason(sequence, sampled.token_id, eos_token_ids, max_model_len)
    token = TokenEvent(
        leg.request_id,
        leg.epoch,
        sequence.num_generated - 1,
        sampled.token_id,
        finish,
        sampled.logprobs,
    )
    if leg.kind is Leg.COLOCATED and not leg.sent_first_token:
        started_s = leg.started_s if leg.started_s is not None else timing.started_s
        leg.sent_first_token = True
        leg.ready_s = timing.ended_s
        prefill = PrefillTiming(
            started_s - leg.submitted_s, timing.ended_s - started_s, leg.num_cached_tokens
        )
        leg.sink.emit(FirstToken(token, prefill))
        return finish
    decode = None
    if not leg.reported_timing:
        leg.reported_timing = True
        decode = DecodeTiming(
            queue_s=max(0.0, timing.started_s - leg.ready_s),
            first_step_s=timing.ended_s - timing.started_s,
        )
    leg.sink.emit(Tokens((token,), decode))
    return finish
