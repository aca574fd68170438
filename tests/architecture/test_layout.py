"""The tree keeps its shape: small files, no attics, nothing shadowed, no paths of one machine."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.source_tree import (
    PACKAGES,
    ROOT,
    own_python_files,
    package_files,
    parse,
    relative,
    tracked_files,
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
ATTIC_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def test_files_are_short() -> None:
    long = {
        relative(path): count
        for path in own_python_files()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"over {MAX_FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name} {(node.end_lineno or 0) - node.lineno + 1}"
        for path in own_python_files()
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long, f"over {MAX_FUNCTION_LINES} lines:\n" + "\n".join(long)


def test_every_module_says_what_it_is() -> None:
    silent = [
        relative(path)
        for path in package_files()
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(parse(path))
    ]
    assert not silent, f"without a module docstring: {silent}"


def test_no_attics() -> None:
    assert not [relative(p) for p in own_python_files() if p.stem.lower() in ATTIC_NAMES]


def test_proto_holds_only_proto_files() -> None:
    others = [relative(p) for p in (ROOT / "proto").rglob("*") if p.is_file()]
    assert [name for name in others if not name.endswith(".proto")] == []
    assert others, "no .proto file at all"


def test_every_package_is_listed_for_installation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    present = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == present


@pytest.mark.parametrize("name", PACKAGES)
def test_top_level_names_are_ours(name: str) -> None:
    """No installed distribution shadows a package of ours."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners <= {"pdserve"}


def test_every_direct_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines.extend(extra)
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in lines}
    document = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([^`]+)` \|", document, flags=re.MULTILINE))
    assert names == explained


def test_every_direct_dependency_is_pinned() -> None:
    def plain(name: str) -> str:
        return name.lower().replace("_", "-")

    pins = {
        plain(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *groups["demo"],
        *groups["ray"],
        *groups["nixl"],
        *groups["compare"],
        *groups["gpu"],
        *groups["triton"],
        *groups["dev"],
    ]
    names = {plain(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]) for line in lines}
    assert names <= pins


def test_no_paths_of_one_machine() -> None:
    # Put together here so that this file does not hold them itself.
    marks = ["/" + name for name in ("root/", "work/", "home/", "Users/", "opt/pypi", "tmp/brief")]
    found: list[str] = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found.extend(f"{relative(path)}: {mark}" for mark in marks if _holds_path(text, mark))
    assert not found, "\n".join(found)


def _holds_path(text: str, mark: str) -> bool:
    return re.search(r"(?<![\w./-])" + re.escape(mark), text) is not None


def test_the_search_for_paths_finds_one() -> None:
    mark = "/" + "root/"
    assert _holds_path(f"open('{mark}x')", mark)
    assert not _holds_path(f"a{mark}x", mark)


def test_a_job_submitted_to_ray_takes_along_what_it_runs() -> None:
    """Python of every package, C sources and generated code; not tests, docs or benchmarks."""
    wanted = sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("cluster", "engine", "kvtransfer", "pdserve", "router")
        for pattern in ("*.py", "*.c", "*.h")
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    )
    assert "engine/native/engine.c" in wanted
    told = subprocess.run(
        ["git", "-c", f"core.excludesFile={ROOT / '.rayignore'}", "check-ignore", "--no-index",
         "--stdin"],
        cwd=ROOT, input="\n".join([*wanted, "tests/x.py"]), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert told.stdout.split() == ["tests/x.py"], told.stderr
