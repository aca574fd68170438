"""``pdserve compare``: the same requests against disaggregated and colocated on equal resources.

options -> load read or drawn -> [each setup: start, warm up, send, measure, stop] x rounds, in
turns -> table, break-even advice, plot, raw JSON

Every option of ``pdserve serve`` goes to all setups alike, but for those that make the difference
(compare/resources.py). The client shares the host with what it measures. Exit status: 0 done, 1 a
service did not come up or no request succeeded, 2 wrong options, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from cluster.commands.serve import prepare_once, say
from cluster.compare.config import CompareConfig
from cluster.compare.measures import Slo, turn_measures
from cluster.compare.plot import require_matplotlib
from cluster.compare.report import print_report, write_plot
from cluster.compare.resources import COLOCATED, COLOCATED_ONE, equal_setups
from cluster.compare.traces import RecordedRequest, read_trace
from cluster.compare.workload import (
    Scaling,
    Workload,
    cut_to_fit,
    drawn_requests,
    jobs_of,
    scaled,
)
from cluster.host import inspect_host
from cluster.load.faces import ServiceFace
from cluster.load.records import RequestRecord
from cluster.load.sending import Sender, closed_loop, open_loop
from cluster.load.setups import Setup
from cluster.load.turns import Turn, take_turns, write_raw
from cluster.plan import ServicePlan, read_plan, service_parser
from pdserve.config import build_config, option_fields
from pdserve.errors import ConfigError, ServiceError
from pdserve.types import Role

_LEFT_OUT = {"both": (), "many": (COLOCATED_ONE,), "one": (COLOCATED,)}


def run_compare(argv: Sequence[str]) -> int:
    parser = service_parser("pdserve compare", __doc__.splitlines()[0])
    parser.add_options("compare", CompareConfig)
    sources = parser.parse(argv)
    config = build_config(CompareConfig, "compare", sources)
    plan = read_plan(sources)
    own = {field.name for field in option_fields(CompareConfig)}
    flags = parser.given_flags(sources, leave_out=own)
    if config.plot != "none":
        require_matplotlib()
    requests = _requests(config)
    spec = plan.cluster_spec(inspect_host(with_cuda=plan.wants_cuda()))
    ways = equal_setups(plan, spec)
    prepare_once(plan, say)
    left_out = _LEFT_OUT[config.against]
    setups = [Setup(name, (*flags, *ways[name])) for name in ways if name not in left_out]
    if len(setups) == 1:
        raise ConfigError("against: on CUDA devices there is only --against many")
    span_s, num_turns = requests[-1].at_s, len(setups) * config.rounds
    say(
        f"{len(requests)} requests arrive in {span_s:.0f} s: {num_turns} turns take at least "
        f"{span_s * num_turns:.0f} s and the starts (--time-scale, --num-requests, --against)"
    )
    load = _Load(config, requests)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(
            take_turns(setups, config.rounds, load.run, lambda records: _measures(config, records))
        )
    return _report(config, plan, turns, load.sent)


def _measures(config: CompareConfig, records: Sequence[RequestRecord]) -> dict[str, float]:
    return turn_measures(records, slo_of(config))


def slo_of(config: CompareConfig) -> Slo:
    return Slo(config.slo_ttft_ms / 1e3, config.slo_itl_ms / 1e3)


def _requests(config: CompareConfig) -> list[RecordedRequest]:
    if not config.trace:
        return drawn_requests(
            config.isl, config.osl, config.rate, config.num_requests, config.load_seed
        )
    recorded = read_trace(
        Path(config.trace), config.trace_format, config.first_request, config.num_requests
    )
    scaling = Scaling(config.time_scale, config.length_scale, config.spread_s, config.answer_scale)
    return scaled(recorded, scaling)


@dataclass(slots=True)
class _Load:
    """Sends the same requests in every turn. ``sent``: as they were cut to the model's context."""

    config: CompareConfig
    requests: Sequence[RecordedRequest]
    sent: Workload | None = None

    async def run(self, face: ServiceFace, _round: int) -> list[RequestRecord]:
        config = self.config
        vocab_size = await face.vocab_size()
        workload = cut_to_fit(
            self.requests,
            max_model_len=await face.max_model_len(),
            max_prompt_tokens=config.max_isl,
            max_output_tokens=config.max_osl,
            block_tokens=Scaling(length=config.length_scale).block_tokens,
        )
        self.sent = workload
        jobs = jobs_of(workload, vocab_size, config.load_seed)
        warm = jobs_of(workload, vocab_size, f"{config.load_seed} warm-up")[
            : config.warmup_requests
        ]
        await closed_loop(Sender.start(face, config.answer_timeout_s), warm, max(1, len(warm)))
        sender = Sender.start(face, config.answer_timeout_s)
        return await open_loop(sender, jobs, workload.offsets_s)


def _report(
    config: CompareConfig, plan: ServicePlan, turns: Sequence[Turn], sent: Workload | None
) -> int:
    assert sent is not None  # every turn sets it
    name = f"compare-{time.strftime('%Y%m%dT%H%M%S')}"
    raw = config.results / f"{name}.json"
    write_raw(raw, turns)
    chunk_tokens = plan.engine(Role.DECODE).chunk_tokens
    print_report(config, turns, sent, slo_of(config), chunk_tokens)
    print(f"\nevery request: {raw}")
    if config.plot != "none":
        plot = config.results / f"{name}.{config.plot}"
        write_plot(plot, config, turns, sent, slo_of(config))
        print(f"plot: {plot}")
    if any(not turn.measures for turn in turns):
        raise ServiceError("a turn has no request that succeeded; see the errors in the table")
    return 0
