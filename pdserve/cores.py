"""Sets of processor cores as people write them: "0,2-3". Knows nothing of who runs on them."""

from __future__ import annotations

from pdserve.errors import ConfigError


def parse_cores(text: str) -> tuple[int, ...]:
    """Core numbers, sorted, without repeats; "" is the empty set.

    Raises:
        ConfigError: not of the form "0,2-3".
    """
    cores: set[int] = set()
    for part in text.replace(" ", "").split(","):
        if not part and not text.strip():
            continue
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"cpus must look like '0,2-3', not {text!r}")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > 65_535:
            raise ConfigError(f"cpus: {part!r} is not a range of cores")
        cores.update(range(low, high + 1))
    return tuple(sorted(cores))


def format_cores(cores: tuple[int, ...]) -> str:
    """The shortest text that ``parse_cores`` reads back."""
    runs: list[tuple[int, int]] = []
    for core in cores:
        if runs and runs[-1][1] + 1 == core:
            runs[-1] = (runs[-1][0], core)
        else:
            runs.append((core, core))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
