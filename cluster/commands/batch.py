"""``pdserve batch``: a file of requests through a service of its own, then the end.

what is done already -> service up -> every other line sent -> summary -> service stopped

The first signal takes no more lines and lets those under way finish (``--drain-grace-s``), the
second stops now; the same command goes on where it was left. Exit status: 0 every line has a
result, 1 some failed through the service (the same command tries those again), 2 wrong options,
130 stopped before the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from cluster.batch.config import BatchConfig
from cluster.batch.files import BatchInput, BatchOutput, check_input, read_input
from cluster.batch.http_client import ServiceUrl
from cluster.batch.progress import Progress
from cluster.batch.sending import LineEnd, Senders
from cluster.batch.summary import Tally, summary_facts, summary_lines
from cluster.commands.serve import launcher_of, say
from cluster.plan import ServicePlan, read_plan, service_parser
from pdserve.app import StopSignals, end_with_parent, stop_signals, unless
from pdserve.clock import MonotonicClock
from pdserve.config import build_config
from pdserve.errors import ConfigError
from pdserve.log import setup_logging

# Nobody else needs the ports of a service that lives for one batch, or a line for each request.
_DEFAULTS = ("--http-port=0", "--grpc-port=0", "--worker-port=0", "--log-level=warning")


def run_batch(argv: Sequence[str]) -> int:
    parser = service_parser("pdserve batch", __doc__.splitlines()[0])
    parser.add_options("batch", BatchConfig)
    sources = parser.parse([*_DEFAULTS, *argv])
    config = build_config(BatchConfig, "batch", sources)
    for name in ("input", "output"):
        if not getattr(config, name):
            raise ConfigError(f"option --{name} must be given")
    url = ServiceUrl.parse(config.service_url) if config.service_url else None
    plan = read_plan(sources)
    setup_logging(plan.log)
    end_with_parent(plan.process)
    source = Path(config.input)
    check_input(source)
    with BatchOutput.open(Path(config.output)) as output:
        lines = read_input(source, output.done)
        batch = _Batch(config, plan, lines, output)
        if not batch.is_done:
            with asyncio.Runner() as runner:
                runner.run(batch.run(url))
        return batch.report()


class _Batch:
    """One run over the lines that have no result yet."""

    def __init__(
        self, config: BatchConfig, plan: ServicePlan, lines: BatchInput, output: BatchOutput
    ) -> None:
        self._config = config
        self._plan = plan
        self._input = lines
        self._output = output
        self._clock = MonotonicClock()
        self._tally = Tally(lines.num_lines, len(output.done))
        self._progress = Progress(self._tally, sys.stderr, self._clock, config.progress_s)
        self._took_s = 0.0

    @property
    def is_done(self) -> bool:
        return self._tally.num_ended == self._tally.num_lines

    def report(self) -> int:
        """Print the summary; the exit status."""
        if self._config.json:
            print(json.dumps(summary_facts(self._tally, self._took_s), indent=1))
        else:
            print("\n".join(summary_lines(self._tally, self._took_s)))
        sys.stdout.flush()
        if not self.is_done:
            return 130
        return 1 if self._tally.num_may_pass else 0

    async def run(self, url: ServiceUrl | None) -> None:
        """Send them to ``url``, or to a service that is started for it and stopped afterwards."""
        async with AsyncExitStack() as stack:
            signals = stack.enter_context(stop_signals())
            if url is not None:
                await self._send_all(url, signals)
                return
            launcher = launcher_of(self._plan, self._say)
            stack.push_async_callback(launcher.kill)
            if not await unless(signals.drain, launcher.start()):
                self._say("stopped before the service was up")
                return
            await self._send_all(ServiceUrl.parse(launcher.address.http_url), signals)
            await unless(signals.now, launcher.stop())

    async def _send_all(self, url: ServiceUrl, signals: StopSignals) -> None:
        config = self._config
        senders = Senders(
            url,
            self._clock,
            concurrency=config.concurrency,
            max_tries=config.max_tries,
            timeout_s=config.request_timeout_s,
        )
        num_left = self._tally.num_lines - self._tally.num_ended
        self._say(f"sending {num_left:,} lines, up to {config.concurrency:,} at once")
        self._progress.start()
        left = (line for line in self._input.lines() if line.number not in self._output.done)
        work = asyncio.create_task(senders.run(left, self._ended))
        stopped = asyncio.create_task(signals.drain.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                senders.take_no_more()
                grace_s = self._plan.process.drain_grace_s
                self._say(f"stopping: requests under way have {grace_s:g} s to finish")
                await unless(signals.now, asyncio.wait({work}, timeout=grace_s))
            if work.done():
                work.result()
        finally:
            self._took_s = self._progress.elapsed_s
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
            self._progress.finish()

    def _ended(self, end: LineEnd) -> None:
        self._output.write(end.result)
        self._tally.add(end)
        self._progress.advanced()

    def _say(self, line: str) -> None:
        self._progress.clear()
        say(line)
