"""Log lines: time, level, where, then ``event key=value``. Set up once by each process's command.

The lines go to standard error; the launcher puts the child's name before them. Libraries are kept
at warnings unless debugging is asked for. Not covered: log files, structured (JSON) logs.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pdserve.config import Option

OWN_PACKAGES = (
    "pdserve", "engine", "kvtransfer", "prefill_worker", "decode_worker", "router", "cluster",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogConfig:
    TABLE: ClassVar = "log"

    log_level: Annotated[
        str, Option("least severity that is logged", choices=("debug", "info", "warning", "error"))
    ] = "info"


def setup_logging(config: LogConfig) -> None:
    """Send log lines of this process to standard error."""
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    others = level if level == logging.DEBUG else max(level, logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s", datefmt="%H:%M:%S"
        )
    )
    logging.basicConfig(level=others, handlers=[handler], force=True)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(level)
