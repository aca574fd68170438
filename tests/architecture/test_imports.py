"""Imports go one way, and each library has one home."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys

import pytest

from support.source_tree import (
    PACKAGES,
    ROOT,
    imported_modules,
    package_files,
    parse,
    relative,
)

# What each package may import of the others.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "pdserve": frozenset(),
    "engine": frozenset({"pdserve"}),
    "kvtransfer": frozenset({"pdserve"}),
    "prefill_worker": frozenset({"engine", "kvtransfer", "pdserve"}),
    "decode_worker": frozenset({"engine", "kvtransfer", "pdserve"}),
    "router": frozenset({"pdserve"}),
    "cluster": frozenset(PACKAGES) - {"cluster"},
}

_GRPC_HOMES = ("pdserve/rpc/*", "pdserve/v1/*", "kvtransfer/transports/grpc*")

# Where each library may be imported. A library that is not here may not be imported at all.
LIBRARY_HOMES: dict[str, tuple[str, ...]] = {
    "torch": ("engine/*", "kvtransfer/compress.py", "kvtransfer/convert.py"),
    "triton": ("engine/triton_decode.py",),
    "numpy": ("engine/*", "kvtransfer/*", "router/*"),
    "gguf": ("engine/modelfiles/*",),
    "huggingface_hub": ("engine/modelfiles/hub.py",),
    "safetensors": ("engine/modelfiles/*",),
    "tokenizers": ("router/*", "engine/modelfiles/*", "engine/fake_model.py"),
    "jinja2": ("router/*",),
    "grpc": _GRPC_HOMES,
    "google": _GRPC_HOMES,
    "grpc_health": ("pdserve/rpc/*",),
    "grpc_reflection": ("pdserve/rpc/*",),
    "msgpack": ("kvtransfer/*",),
    "xxhash": ("kvtransfer/*", "pdserve/prefix_keys.py", "pdserve/route_hints.py"),
    "starlette": ("router/http/*",),
    "uvicorn": ("router/http/*",),
    "httptools": ("router/http/*", "cluster/batch/http_client.py"),
    "msgspec": ("router/*",),
    "prometheus_client": ("pdserve/metrics.py", "pdserve/histogram.py", "router/*"),
    "uvloop": ("cluster/*",),
    "openai": ("cluster/demo.py",),
    "matplotlib": ("cluster/compare/plot.py",),
    "httpx": ("cluster/load/faces.py",),
    "opentelemetry": ("pdserve/otel.py",),
    "ray": ("cluster/*", "kvtransfer/transports/ray*"),
    "nixl": ("kvtransfer/transports/nixl_agent.py",),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in package_files(package)
        for line, module in imported_modules(parse(path))
        if module.split(".")[0] in PACKAGES and module.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_every_library_stays_in_its_home() -> None:
    wrong: list[str] = []
    for path in package_files():
        for line, module in imported_modules(parse(path)):
            top = module.split(".")[0]
            if top in PACKAGES or top in sys.stdlib_module_names:
                continue
            homes = LIBRARY_HOMES.get(top, ())
            if not any(fnmatch.fnmatch(relative(path), home) for home in homes):
                wrong.append(f"{relative(path)}:{line} imports {module}; homes: {homes or 'none'}")
    assert not wrong, "\n".join(wrong)


def test_nothing_private_is_imported() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno} imports {name.name}"
        for path in package_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for name in node.names
        if name.name.startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_relative_imports() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in package_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not wrong, "\n".join(wrong)


def _names_environment(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv", "putenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    )


def test_the_environment_is_read_in_one_place() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in package_files()
        if relative(path) != "pdserve/config.py"
        for node in ast.walk(parse(path))
        if _names_environment(node) and isinstance(node, ast.Attribute)
    ]
    assert not wrong, "os.environ outside pdserve/config.py:\n" + "\n".join(wrong)


def test_the_command_line_starts_without_heavy_libraries() -> None:
    """``pdserve --help`` must not wait for torch: heavy imports stand inside the commands."""
    code = "import sys, cluster.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "cluster" in loaded
    assert not loaded & {*LIBRARY_HOMES, "asyncio", "engine", "router", "kvtransfer"}
