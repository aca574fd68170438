"""Every log line of ours is an event with facts: one way to write it, one name for each id."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from support.source_tree import package_files, parse, relative

METHODS = {"debug", "info", "warning", "error", "at"}
RESERVED = {"time", "level", "logger", "event", "traceback"}  # keys of every JSON line
# One name for each thing, whatever the variable is called.
OTHER_NAMES = {"request_id": "request", "worker_id": "worker", "message": "text", "msg": "text"}


def _events() -> Iterator[tuple[str, ast.Call]]:
    for path in package_files():
        for node in ast.walk(parse(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in METHODS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in {"_log", "logger", "log"}
            ):
                yield f"{relative(path)}:{node.lineno}", node


def test_only_the_log_module_touches_logging() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in package_files()
        if relative(path) != "pdserve/log.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr == "getLogger"
    ]
    assert not wrong, "use pdserve.log.event_log:\n" + "\n".join(wrong)


def test_events_have_names_and_facts() -> None:
    wrong: list[str] = []
    seen = 0
    for where, call in _events():
        seen += 1
        name = call.args[1 if getattr(call.func, "attr", "") == "at" else 0]
        text = str(name.value) if isinstance(name, ast.Constant) else ""
        if not re.fullmatch("[a-z][a-z0-9_]*", text):
            wrong.append(f"{where}: the event must be a snake_case literal")
        for keyword in call.keywords:
            if keyword.arg in RESERVED:
                wrong.append(f"{where}: {keyword.arg} is a key of every line")
            elif keyword.arg in OTHER_NAMES:
                wrong.append(f"{where}: {keyword.arg} is called {OTHER_NAMES[keyword.arg]}")
    assert seen > 20
    assert not wrong, "\n".join(wrong)
