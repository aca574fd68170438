"""What long prompts do to everybody else's next token: steady streams, quiet and then loaded.

Disaggregated and both colocated uses of the same two cores, started in turns, and any OpenAI server
that runs already (``--against NAME=URL``, may be repeated). Flags after ``--`` go to
``pdserve serve``. benchmarks/README.md tells how to read the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.in_turns import (
    add_load_options,
    add_output_options,
    add_target_options,
    run_in_turns,
    warm_up,
)
from benchmarks.interference import (
    STEADY,
    InterferencePlan,
    interference_measures,
    run_interference,
)
from benchmarks.result import ScenarioResult
from cluster.load.arrivals import draw_jobs
from cluster.load.faces import ServiceFace
from cluster.load.records import RequestRecord
from cluster.load.sending import Sender
from cluster.load.setups import Setup, compared_setups
from cluster.load.turns import Measures

SUMMARY = "gaps of steady streams while long prompts arrive, disaggregated, colocated and others"
_LOAD = ("streams", "steady_isl", "steady_osl", "long_isl", "long_osl", "every_s", "phase_s",
         "settle_s", "alone", "warmup", "seed")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("target")
    target.add_argument("--against", action="append", default=[], metavar="NAME=URL",
                        help="a running OpenAI server, asked by HTTP in its turn")  # fmt: skip
    target.add_argument("--only", choices=("disaggregated", "against"),
                        help="leave the other setups out")  # fmt: skip
    add_target_options(target)
    load = parser.add_argument_group("load")
    load.add_argument("--streams", type=int, default=4)
    load.add_argument("--steady-isl", type=int, default=16)
    load.add_argument("--steady-osl", type=int, default=200)
    load.add_argument("--long-isl", type=int, default=1500)
    load.add_argument("--long-osl", type=int, default=16)
    load.add_argument("--every-s", type=float, default=3.0, help="between long prompts")
    load.add_argument("--phase-s", type=float, default=30.0, help="quiet, and loaded")
    load.add_argument("--settle-s", type=float, default=2.0, help="streams alone, not counted")
    load.add_argument("--alone", type=int, default=3, help="long prompts one by one at the end")
    load.add_argument("--warmup", type=int, default=2, help="long prompts first, not counted")
    add_load_options(load)
    add_output_options(parser)


def run(args: argparse.Namespace) -> ScenarioResult:
    return run_in_turns("interference", args, _setups(args), _InterferenceLoad(args), STEADY)


def _setups(args: argparse.Namespace) -> list[Setup]:
    flags: Sequence[str] = args.serve_flags
    others: list[Setup] = []
    for each in args.against:
        name, is_named, url = each.partition("=")
        if not is_named or not url.startswith("http"):
            raise SystemExit(f"--against must look like NAME=http://host:port, not {each!r}")
        others.append(Setup(name, url=url))
    if args.only == "against":
        return others
    ours = compared_setups(flags, args.face)
    return [*(ours[:1] if args.only else ours), *others]


class _InterferenceLoad:
    """Steady streams, quiet and then with long prompts among them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._plan = InterferencePlan(
            num_streams=args.streams, steady_prompt_tokens=args.steady_isl,
            steady_output_tokens=args.steady_osl, long_prompt_tokens=args.long_isl,
            long_output_tokens=args.long_osl, every_s=args.every_s, phase_s=args.phase_s,
            settle_s=args.settle_s, num_alone=args.alone,
        )  # fmt: skip

    async def run(self, face: ServiceFace, number: int) -> list[RequestRecord]:
        args, plan = self._args, self._plan
        vocab_size = args.vocab_size or await face.vocab_size()
        seed = f"{args.seed} {number}"
        warmup = draw_jobs(
            args.warmup, num_prompt_tokens=plan.long_prompt_tokens,
            max_tokens=plan.long_output_tokens, vocab_size=vocab_size, seed=f"{seed} warm",
        )  # fmt: skip
        await warm_up(face, args, warmup)
        return await run_interference(Sender.start(face, args.timeout_s), plan, vocab_size, seed)

    def measure(self, records: Sequence[RequestRecord]) -> Measures:
        return interference_measures(records, self._plan)

    def describe(self) -> dict[str, object]:
        return {name: getattr(self._args, name) for name in _LOAD}
