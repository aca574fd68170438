"""What long prompts do to everybody else's next token.

    |- settle -|------ quiet ------|------ loaded ------|- what runs is finished -|- alone -|
    steady streams, one request after another ..........
                                   long prompt every S seconds                     long prompts,
                                                                                   one by one

A gap belongs to the phase in which it ends; only gaps within a stream count. The prompts alone tell
what the service makes of them undisturbed, in the same run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.load.arrivals import Job, draw_jobs
from cluster.load.percentiles import percentiles_ms
from cluster.load.records import RequestRecord, ledger_measures
from cluster.load.sending import Sender, open_loop

STEADY, LONG, ALONE = "steady", "long", "alone"


@dataclass(frozen=True, slots=True)
class InterferencePlan:
    num_streams: int
    steady_prompt_tokens: int
    steady_output_tokens: int
    long_prompt_tokens: int
    long_output_tokens: int
    every_s: float
    phase_s: float  # length of the quiet and of the loaded phase
    settle_s: float  # streams alone before that, not counted
    num_alone: int = 3  # long prompts one by one at the end

    @property
    def num_long(self) -> int:
        return len(self.long_offsets_s)

    @property
    def long_offsets_s(self) -> list[float]:
        """From the start of the loaded phase."""
        count = itertools.count()
        return list(
            itertools.takewhile(lambda t: t < self.phase_s, (n * self.every_s for n in count))
        )

    @property
    def loaded_from_s(self) -> float:
        return self.settle_s + self.phase_s


async def run_interference(
    sender: Sender, plan: InterferencePlan, vocab_size: int, seed: str
) -> list[RequestRecord]:
    """Records of both kinds; times are from the start of ``sender``."""
    stop = asyncio.Event()
    records: list[RequestRecord] = []

    async def stream(number: int) -> None:
        for job in _steady_jobs(plan, vocab_size, f"{seed} steady {number}"):
            records.append(await sender.send(job, kind=STEADY))
            if stop.is_set() or records[-1].error:  # a stream that failed does not hammer on
                return

    long_jobs = draw_jobs(
        plan.num_long + plan.num_alone, num_prompt_tokens=plan.long_prompt_tokens,
        max_tokens=plan.long_output_tokens, vocab_size=vocab_size, seed=f"{seed} long",
    )  # fmt: skip
    async with asyncio.TaskGroup() as streams:
        for number in range(plan.num_streams):
            streams.create_task(stream(number))
        await sender.wait_until(plan.loaded_from_s)
        long_records = await open_loop(
            sender, long_jobs[: plan.num_long], plan.long_offsets_s, kind=LONG
        )
        await sender.wait_until(plan.loaded_from_s + plan.phase_s)
        stop.set()
    alone = [await sender.send(job, kind=ALONE) for job in long_jobs[plan.num_long :]]
    return [*records, *long_records, *alone]


def _steady_jobs(plan: InterferencePlan, vocab_size: int, seed: str) -> Iterator[Job]:
    for number in itertools.count():
        yield from draw_jobs(
            1, num_prompt_tokens=plan.steady_prompt_tokens, max_tokens=plan.steady_output_tokens,
            vocab_size=vocab_size, seed=f"{seed} {number}",
        )  # fmt: skip


def interference_measures(
    records: Sequence[RequestRecord], plan: InterferencePlan
) -> dict[str, float]:
    steady = [record for record in records if record.kind == STEADY]
    long = [record for record in records if record.kind == LONG and not record.error]
    measures: dict[str, float] = {}
    starts_s = {"quiet": plan.settle_s, "loaded": plan.loaded_from_s}
    for phase, start_s in starts_s.items():
        end_s = start_s + plan.phase_s
        gaps_s = [
            gap_s for record in steady for at_s, gap_s in record.gaps if start_s <= at_s < end_s
        ]
        measures |= percentiles_ms(f"steady ITL {phase}", gaps_s, (50, 99, 100))
        num_tokens = sum(
            count for record in steady for at_s, count in record.arrivals if start_s <= at_s < end_s
        )
        measures[f"steady tokens/s {phase}"] = num_tokens / plan.phase_s
    if (
        quiet := measures.get("steady ITL quiet p50 ms")
    ) and "steady ITL loaded p99 ms" in measures:
        measures["loaded p99 / quiet p50"] = measures["steady ITL loaded p99 ms"] / quiet
        measures["loaded p99 / quiet p99"] = (
            measures["steady ITL loaded p99 ms"] / measures["steady ITL quiet p99 ms"]
        )
    measures |= percentiles_ms("long TTFT", [record.ttft_s for record in long], (50, 100))
    alone = [record for record in records if record.kind == ALONE and not record.error]
    measures |= percentiles_ms("long TTFT alone", [record.ttft_s for record in alone], (50,))
    if long and alone:
        # The prompts are of one length, so their rates are as their times.
        share = measures["long TTFT alone p50 ms"] / measures["long TTFT p50 ms"]
        measures["long prompts' rate, % of alone"] = 100 * share
    measures["long prompts done"] = len(long)
    return {**measures, **ledger_measures(long)}
