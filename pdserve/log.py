"""Log lines: an event and its facts. ``event key=value`` for people, JSON for machines.

    log = event_log(__name__)
    log.info("worker_joined", worker=hello.worker_id, device=hello.device)

    2026-11-24T08:53:22.123Z INFO router.pool worker_joined worker=decode-0 device=cpu
    {"time": "2026-11-24T08:53:22.123Z", "level": "info", "logger": "router.pool",
     "event": "worker_joined", "worker": "decode-0", "device": "cpu"}

A line about a request has ``request``, one about a worker ``worker``; the process of a worker puts
its own ``worker`` on every line that names none. ``next`` says what a person can do about it. The
lines go to standard error. Set up once by each process's command. Lines of libraries are kept at
warnings unless debugging is asked for. Not covered: log files and their rotation.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, TextIO

from pdserve.config import Option
from pdserve.errors import ConfigError
from pdserve.option_values import nearest

OWN_PACKAGES = (
    "pdserve", "engine", "kvtransfer", "prefill_worker", "decode_worker", "router", "cluster",
)  # fmt: skip
LEVELS = ("debug", "info", "warning", "error")
_PLAIN = re.compile(r"[^\s\"'=\\\x00-\x1f\x7f]+")  # values that need no quotes
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


@dataclass(frozen=True, slots=True)
class LogConfig:
    TABLE: ClassVar = "log"

    log_level: Annotated[str, Option("least severity that is logged", choices=LEVELS)] = "info"
    log_format: Annotated[
        str,
        Option(
            "text: time, level, where, event key=value; json: one object a line",
            choices=("text", "json"),
        ),
    ] = "text"
    package_log_levels: Annotated[
        tuple[str, ...],
        Option("severity for one package, as kvtransfer=debug or router.http=warning"),
    ] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What one line tells. As text: ``event key=value``; facts that are None are left out."""

    name: str
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return _told(self.name, self.facts)


class EventLog:
    """A named log of events. Facts are rendered only if the line is written."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **facts: object) -> None:
        self._write(logging.DEBUG, event, facts)

    def info(self, event: str, /, **facts: object) -> None:
        self._write(logging.INFO, event, facts)

    def warning(self, event: str, /, **facts: object) -> None:
        self._write(logging.WARNING, event, facts)

    def error(self, event: str, /, *, exc: BaseException | None = None, **facts: object) -> None:
        """``exc``: its traceback is written too."""
        self._write(logging.ERROR, event, facts, exc)

    def at(self, level: int, event: str, /, **facts: object) -> None:
        """For a severity that depends on the facts; ``level`` is one of logging's."""
        self._write(level, event, facts)

    def _write(
        self,
        level: int,
        event: str,
        facts: Mapping[str, object],
        exc: BaseException | None = None,
    ) -> None:
        logger = self._logger
        if logger.isEnabledFor(level):
            raised = None if exc is None else (type(exc), exc, exc.__traceback__)
            told = (Event(event, facts),)
            # Logger.log would look for the caller's file and line, which no line tells.
            logger.handle(logger.makeRecord(logger.name, level, logger.name, 0, "%s", told, raised))


def event_log(name: str) -> EventLog:
    """``name``: the module's."""
    return EventLog(logging.getLogger(name))


@contextmanager
def taken_over(name: str) -> Iterator[None]:
    """For the import of a library that sets up logging for itself: its warnings come to us."""
    raises = logging.raiseExceptions
    try:
        yield
    finally:
        logging.raiseExceptions = raises
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def setup_logging(config: LogConfig, worker: str = "") -> None:
    """Send log lines of this process to standard error. ``worker``: the process's own id.

    Raises:
        ConfigError: a package or level of ``package_log_levels`` is unknown.
    """
    levels = dict(_package_level(text) for text in config.package_log_levels)
    level = _number(config.log_level)
    others = level if level == logging.DEBUG else max(level, logging.WARNING)
    own = {"worker": worker} if worker else {}
    handler = _StandardError()
    handler.setFormatter(JsonLines(own) if config.log_format == "json" else TextLines(own))
    logging.basicConfig(level=others, handlers=[handler], force=True)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(level)
    for name, number in levels.items():
        logging.getLogger(name).setLevel(number)


class TextLines(logging.Formatter):
    """One event a line; a traceback follows on lines of its own."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        event = _event_of(record)
        facts = _with_own(event.facts, self._own) if self._own else event.facts
        line = f"{_utc(record)} {record.levelname} {record.name} {_told(event.name, facts)}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return f"{line}\n{record.stack_info}" if record.stack_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever the event: ``traceback`` is a text in it."""

    def __init__(self, own: Mapping[str, str]) -> None:
        super().__init__()
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        event = _event_of(record)
        told = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event.name,
        }
        facts = _with_own(event.facts, self._own)
        told |= {name: _as_json(value) for name, value in facts.items() if value is not None}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return _one_line(told)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def line_of(config: LogConfig, event: str, **facts: object) -> str:
    """One line of a launcher, which speaks for no process: the plain text, or JSON."""
    if config.log_format == "text":
        return str(facts.get("text", Event(event, facts)))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _one_line({"time": now, "level": "info", "event": event, **facts})


def _event_of(record: logging.LogRecord) -> Event:
    """Our event, or a library's line as the event "message"."""
    if isinstance(record.args, tuple) and record.args and isinstance(record.args[0], Event):
        return record.args[0]
    return Event("message", {"text": record.getMessage()})


def _with_own(facts: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    return {**facts, **{name: value for name, value in own.items() if name not in facts}}


def _utc(record: logging.LogRecord) -> str:
    # Hosts of one service lie in several time zones.
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@lru_cache(maxsize=2)
def _second(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))


def _told(event: str, facts: Mapping[str, Any]) -> str:
    told = [f" {name}={_quoted(value)}" for name, value in facts.items() if value is not None]
    return event + "".join(told)


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else _one_line(text)


def _one_line(value: object) -> str:
    """JSON without any character that some reader takes for the end of a line."""
    return json.dumps(value, ensure_ascii=False).translate(_LINE_BREAKS)


def _as_json(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, (bool, int)) else str(value)


def _package_level(text: str) -> tuple[str, int]:
    name, equals, level = text.partition("=")
    package = name.split(".")[0]
    if not equals or level not in LEVELS:
        raise ConfigError(
            f"package_log_levels must be like kvtransfer=debug, with one of {', '.join(LEVELS)}, "
            f"not {text!r}"
        )
    if package not in OWN_PACKAGES:
        raise ConfigError(
            f"package_log_levels: no package {package!r}{nearest(package, OWN_PACKAGES)}"
        )
    return name, _number(level)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
