"""Builds the C kernels with the host's own compiler, once for each source and kind of processor.

The library lies in the model cache, named by a digest of sources, flags, compiler and processor,
so that hosts sharing a home folder never load each other's code. Knows nothing of what the library
does. Not covered: compilers other than gcc and clang, systems other than Linux on x86-64.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence as SequenceOf
from pathlib import Path

from pdserve.config import cache_folder
from pdserve.errors import ConfigError
from pdserve.log import event_log

logger = event_log(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
COMMON_FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-pthread", "-lm")
HOST_FLAGS = ("-march=native",)
BUILD_DEADLINE_S = 120.0


def build_library(dtype: str, cache: Path | None = None) -> Path:
    """The library for models of ``dtype``; seconds the first time, nothing later.

    Raises:
        ConfigError: no compiler, not x86-64 with AVX2, or the compiler's own first error.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise ConfigError(f"native: the kernels are for x86-64, not {platform.machine()}")
    compiler = _find_compiler()
    element = ("-DELEM_BF16",) if dtype == "bfloat16" else ()
    command = [compiler, *COMMON_FLAGS, *HOST_FLAGS, *element]
    folder = (cache or cache_folder()) / "native"
    target = folder / f"{dtype}-{_digest(command)}.so"
    if not target.exists():
        logger.info("native_build", dtype=dtype, compiler=compiler)
        _compile(command, target)
    return target


def _find_compiler() -> str:
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise ConfigError(f"native: no C compiler found (looked for {', '.join(COMPILERS)})")


def _digest(command: SequenceOf[str]) -> str:
    digest = hashlib.blake2b("\n".join(command).encode(), digest_size=12)
    digest.update(_run([command[0], "--version"]).encode())
    digest.update(_processor().encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """What decides which instructions ``-march=native`` means."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = ("vendor_id", "cpu family", "model\t", "flags")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(command: SequenceOf[str], target: Path) -> None:
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as partial:
            built = Path(partial) / target.name
            _run([*command, *sources, "-o", str(built)])
            built.replace(target)
    except OSError as error:
        raise ConfigError(f"native: cannot write {target.parent}: {error}") from error


def _run(command: SequenceOf[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"native: {command[0]}: {error}") from error
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        first = next((line for line in said.splitlines() if "error" in line), said)
        raise ConfigError(f"native: {command[0]}: {first[:300]}")
    return done.stdout
