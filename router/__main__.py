"""``python -m router``: the router alone in this process; ``--help`` for options.

``pdserve router`` is the same with a ready line and the launcher's care (cluster/). The model must
be prepared already (``pdserve model prepare``): the router reads only its text part, without torch.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pdserve.app import serve_until_stopped, stop_signals
from pdserve.clock import MonotonicClock
from pdserve.errors import PdserveError
from pdserve.log import setup_logging
from pdserve.prepared import read_prepared
from pdserve.role_options import read_role, role_parser
from router.app import RouterApp
from router.config import RouterConfig


async def serve(config: RouterConfig, grace_s: float) -> None:
    """Until a signal stops it."""
    model = read_prepared(Path(config.model))
    with stop_signals() as signals:
        async with RouterApp(config, model, MonotonicClock()) as app:
            await serve_until_stopped(app, signals, grace_s)


def main() -> None:
    parser = role_parser(
        "python -m router", "Text and clients outside, workers inside.", "router", RouterConfig
    )
    try:
        options = read_role("router", RouterConfig, parser.parse(sys.argv[1:]))
        setup_logging(options.log)
        asyncio.run(serve(options.config, options.process.drain_grace_s))
    except PdserveError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
