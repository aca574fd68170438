"""Log lines as text and JSON: quoting, ids, levels, tracebacks, lines of libraries."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.errors import ConfigError
from pdserve.log import Event, LogConfig, event_log, line_of, setup_logging


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logger.level for name, logger in root.manager.loggerDict.items()
              if isinstance(logger, logging.Logger)}  # fmt: skip
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(), worker="decode-0")
    event_log("router.pool").info(
        "kv_failed", request="r-1", error=ValueError('said "no"'), took_s=1 / 3, ok=True, none=None,
        empty="",
    )  # fmt: skip
    (line,) = written(capsys)
    time, rest = line.split(" ", 1)
    assert len(time) == len("2026-11-24T08:53:22.123Z")
    assert rest == (
        'INFO router.pool kv_failed request=r-1 error="said \\"no\\"" took_s=0.333333 ok=true '
        'empty="" worker=decode-0'
    )


def test_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(log_format="json"), worker="decode-0")
    event_log("engine.loop").warning("slow", rows=3, age_s=0.5, error=ValueError("x"), none=None)
    (line,) = written(capsys)
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {
        "level": "warning", "logger": "engine.loop", "event": "slow", "rows": 3, "age_s": 0.5,
        "error": "x", "worker": "decode-0",
    }  # fmt: skip


def test_a_line_about_another_worker_keeps_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(), worker="prefill-0")
    event_log("prefill_worker.app").info("peer", worker="decode-7")
    (line,) = written(capsys)
    assert line.endswith("peer worker=decode-7")


def _broken() -> BaseException:
    try:
        raise RuntimeError("broken\nin two lines")
    except RuntimeError as error:
        return error


def test_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig())
    event_log("engine.loop").error("engine_loop_broken", exc=_broken(), steps=3)
    lines = written(capsys)
    assert lines[0].endswith("engine_loop_broken steps=3")
    assert lines[1].startswith("Traceback")
    setup_logging(LogConfig(log_format="json"))
    event_log("engine.loop").error("engine_loop_broken", exc=_broken(), steps=3)
    (line,) = written(capsys)
    assert "RuntimeError: broken" in json.loads(line)["traceback"]


def test_lines_of_libraries_are_events_too(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(LogConfig(log_format="json"))
    logging.getLogger("uvicorn.error").info("not told")
    logging.getLogger("uvicorn.error").warning("port %d is slow", 80)
    (line,) = written(capsys)
    told = json.loads(line)
    assert (told["event"], told["text"]) == ("message", "port 80 is slow")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LogConfig(), ["router info"]),
        (LogConfig(log_level="debug"), ["router debug", "router info", "kvtransfer debug"]),
        (LogConfig(log_level="error"), []),
        (LogConfig(package_log_levels=("kvtransfer=debug",)), ["router info", "kvtransfer debug"]),
        (LogConfig(package_log_levels=("router.pool=error",)), []),
    ],
)
def test_levels(config: LogConfig, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(config)
    event_log("router.pool").debug("said", text="router debug")
    event_log("router.pool").info("said", text="router info")
    event_log("kvtransfer.importer").debug("said", text="kvtransfer debug")
    assert [line.rpartition("text=")[2].strip('"') for line in written(capsys)] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kvtransfer", "like kvtransfer=debug"),
        ("kvtransfer=loud", "debug, info, warning, error"),
        ("kvtransfr=debug", "did you mean 'kvtransfer'"),
    ],
)
def test_wrong_levels_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="package_log_levels") as caught:
        setup_logging(LogConfig(package_log_levels=(text,)))
    assert words in str(caught.value)


def test_facts_are_not_rendered_for_a_line_that_is_not_written() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    setup_logging(LogConfig())
    event_log("router").debug("quiet", fact=Costly())


def parse_text(line: str) -> dict[str, str]:
    """The facts of a line of text, as any logfmt reader would take it apart."""
    facts: dict[str, str] = {}
    rest = line
    decoder = json.JSONDecoder()
    while rest:
        key, _, rest = rest.partition("=")
        if rest.startswith('"'):
            value, end = decoder.raw_decode(rest)
        else:
            end = rest.index(" ") if " " in rest else len(rest)
            value = rest[:end]
        facts[key], rest = value, rest[end + 1 :]
    return facts


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(), max_size=4))
def test_every_text_comes_back_from_its_line(facts: dict[str, str]) -> None:
    line = str(Event("event", facts))
    assert len(line.splitlines()) == 1
    assert parse_text(line.removeprefix("event").lstrip(" ")) == facts


def test_lines_of_a_launcher() -> None:
    told: Any = json.loads(line_of(LogConfig(log_format="json"), "launcher", text="up"))
    assert (told["event"], told["text"], told["level"]) == ("launcher", "up", "info")
    assert line_of(LogConfig(), "launcher", text="up") == "up"
