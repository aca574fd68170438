"""The project's own files, parsed: what the architecture tests look at."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "pdserve", "engine", "kvtransfer", "prefill_worker", "decode_worker", "router", "cluster",
)  # fmt: skip
GENERATED = ROOT / "pdserve" / "v1"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def package_files(*packages: str) -> list[Path]:
    """Hand-written Python files of these top-level packages (all of them if none is named)."""
    found: list[Path] = []
    for package in packages or PACKAGES:
        found.extend(p for p in (ROOT / package).rglob("*.py") if GENERATED not in p.parents)
    return sorted(found)


def own_python_files() -> list[Path]:
    """Hand-written Python files of the whole project, tests and benchmarks included."""
    extra = [p for name in ("tests", "benchmarks") for p in (ROOT / name).rglob("*.py")]
    return sorted([*package_files(), *extra])


def tracked_files() -> list[Path]:
    """Files that are or would be in the repository; empty where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    paths = (ROOT / name for name in done.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.lineno, node.module


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
