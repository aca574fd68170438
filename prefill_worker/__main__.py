"""``python -m prefill_worker``: one prefill worker alone in this process; ``--help`` for options.

``pdserve prefill`` is the same with a ready line and the launcher's care (cluster/).
"""

from __future__ import annotations

import asyncio
import sys

from engine.build import build_runner, prepare
from pdserve.app import serve_until_stopped, stop_signals
from pdserve.clock import MonotonicClock
from pdserve.errors import PdserveError
from pdserve.log import setup_logging
from pdserve.role_options import read_role, role_parser
from prefill_worker.app import PrefillApp
from prefill_worker.config import PrefillConfig


async def serve(config: PrefillConfig, grace_s: float) -> None:
    """Until a signal stops it, every router was left, or one refused it (raises)."""
    clock = MonotonicClock()
    model = prepare(config.engine)
    runner = build_runner(config.engine, model, clock, nice=config.nice)
    with stop_signals() as signals:
        async with PrefillApp(config, model, runner, clock) as app, asyncio.TaskGroup() as tasks:
            stopped = tasks.create_task(serve_until_stopped(app, signals, grace_s))
            refused = tasks.create_task(app.wait_refused())
            await asyncio.wait({stopped, refused}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            refused.cancel()
    await runner.close()


def main() -> None:
    parser = role_parser(
        "python -m prefill_worker",
        "Prompts in; first tokens and KV cache out.",
        "prefill",
        PrefillConfig,
    )
    try:
        options = read_role("prefill", PrefillConfig, parser.parse(sys.argv[1:]))
        setup_logging(options.log)
        asyncio.run(serve(options.config, options.process.drain_grace_s))
    except* PdserveError as errors:
        sys.exit(f"{errors.exceptions[0]}")


if __name__ == "__main__":
    main()
