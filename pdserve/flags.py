"""Command-line flags made from configuration classes (pdserve/config.py), and back.

Every flag is ``--kebab-case`` of a field; help shows unit, bounds, choices and default. Values stay
text here and are checked where all sources meet, so that a bad value is told in one way whether
it came from a flag, the environment or a file.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pdserve.config import OptionField, Sources, option_fields, read_sources
from pdserve.errors import ConfigError
from pdserve.option_values import nearest


class FlagParser:
    """Parser of one command. Add classes (and positionals), then ``parse``."""

    def __init__(self, prog: str, description: str) -> None:
        self._parser = _Parser(
            prog=prog,
            description=description,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="Every option is also an environment variable (--http-port: PDSERVE_HTTP_PORT) "
            "and a key of the TOML file.\nFlags beat the environment, the environment beats the "
            "file.",
        )
        self._parser.add_argument("--config", metavar="FILE", help="TOML file with options")
        self._fields: dict[str, OptionField] = {}
        self._flags = ["--config"]

    def add_options(
        self, title: str, cls: type, *, prefix: str = "", leave_out: Collection[str] = ()
    ) -> None:
        """Flags of all options of ``cls``; ``prefix`` (like "prefill_") goes before each name.

        ``leave_out``: names that get no flag. A name that another class has added already is
        shared with it.

        Raises:
            TypeError: the other class means another kind of value by it.
        """
        group = self._parser.add_argument_group(title)
        for field in option_fields(cls):
            if field.name in leave_out:
                continue
            name = prefix + field.name
            known = self._fields.get(name)
            if known is None:
                self._fields[name] = field
                self._flags.append(field.flag_for(prefix))
                _add_flag(group, prefix, field)
            elif (known.kind, known.repeatable) != (field.kind, field.repeatable):
                raise TypeError(f"--{name}: {cls.__name__} and another class differ in its kind")

    def add_positional(self, name: str, text: str, *, choices: Sequence[str] | None = None) -> None:
        self._parser.add_argument(name, help=text, choices=choices)

    def parse(self, argv: Sequence[str]) -> Sources:
        """Flags of ``argv`` with the environment and the file. ``--help`` prints and exits.

        Raises:
            ConfigError: an unknown flag (names the nearest), a missing value or positional.
        """
        namespace, rest = self._parser.parse_known_args(list(argv))
        if rest:
            unknown = rest[0].split("=", 1)[0]
            raise ConfigError(f"unknown argument {unknown!r}{nearest(unknown, self._flags)}")
        flags: dict[str, Any] = vars(namespace)
        file = flags.pop("config", None)
        return read_sources(flags, file)

    def given_flags(self, sources: Sources, *, leave_out: Collection[str] = ()) -> list[str]:
        """The flags (and the file) that ``sources`` came from, without options of these names."""
        flags = [] if sources.file is None else [f"--config={sources.file}"]
        for name, value in sources.flags.items():
            if name not in leave_out:
                field = self._fields[name]
                flag = field.flag_for(name.removesuffix(field.name))
                flags.extend(_given(flag, field, value))
        return flags


def _given(flag: str, field: OptionField, value: str | list[str]) -> list[str]:
    if field.kind is bool and not field.repeatable:
        return [flag if value == "true" else flag.replace("--", "--no-", 1)]
    return [f"{flag}={item}" for item in ([value] if isinstance(value, str) else value)]


def to_flags(config: object) -> list[str]:
    """The flags that rebuild ``config``: what differs from the defaults of its class."""
    flags: list[str] = []
    for field in option_fields(type(config)):
        holder = getattr(config, field.holder) if field.holder else config
        value = getattr(holder, field.name)
        if value == field.default:
            continue
        if field.repeatable:
            flags.extend(f"{field.flag}={item}" for item in value)
        elif field.kind is bool:
            flags.append(field.flag if value else field.flag.replace("--", "--no-", 1))
        else:
            flags.append(f"{field.flag}={value}")
    return flags


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ConfigError like every other one."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _add_flag(group: argparse._ArgumentGroup, prefix: str, field: OptionField) -> None:
    name = prefix + field.name
    flag = field.flag_for(prefix)
    text = _help(field)
    if field.kind is bool and not field.repeatable:
        group.add_argument(flag, dest=name, action="store_const", const="true", help=text)
        off = flag.replace("--", "--no-", 1)
        group.add_argument(
            off, dest=name, action="store_const", const="false", help=argparse.SUPPRESS
        )
        return
    # A size may be given without naming its unit: --kv-memory is --kv-memory-mib.
    flags = [flag, flag.removesuffix("-mib")] if flag.endswith("-mib") else [flag]
    action = "append" if field.repeatable else "store"
    group.add_argument(*flags, dest=name, action=action, metavar=_metavar(field), help=text)


def _metavar(field: OptionField) -> str:
    if field.option.choices:
        return "|".join(field.option.choices)
    if field.option.unit:
        # "MS" would be megaseconds, and a micro sign in upper case is a Greek M: as they are.
        return field.option.unit.replace("%", "percent").replace(" ", "-")
    return {int: "N", float: "X", Path: "PATH"}.get(field.kind, "TEXT")


def _help(field: OptionField) -> str:
    facts: list[str] = []
    if field.option.unit:
        facts.append(f"in {field.option.unit}")
    if field.repeatable:
        facts.append("may be repeated")
    if field.default is not dataclasses.MISSING:
        facts.append(f"default {_shown(field.default)}")
    text = field.option.help + (f" ({', '.join(facts)})" if facts else "")
    return text.replace("%", "%%")  # argparse formats help with %


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default == "" else str(default)
