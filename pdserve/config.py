"""One definition per option: a field of a frozen dataclass, annotated with ``Option``.

    chunk_tokens: Annotated[int, Option("prefill chunk", unit="tokens", low=16)] = 256

From that one line come the flag (pdserve/flags.py), the environment variable, the key of the TOML
file, the check of bounds and the help. Configurations nest: ``engine: EngineConfig`` in a room's
class makes the engine's options the room's, under the table ``[engine]``.

A value is looked for in this order; in each place the role's own name goes before the shared one:

    flag          --prefill-chunk-tokens   --chunk-tokens
    environment   PDSERVE_PREFILL_CHUNK_TOKENS   PDSERVE_CHUNK_TOKENS
    file          [prefill] chunk_tokens   [engine] chunk_tokens
    default

This module does not know which options exist (each room's config.py does). It is the one place
that reads the environment. Not covered: reloading while running.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pdserve.errors import ConfigError

ENVIRONMENT_PREFIX = "PDSERVE_"
SECTIONS = ("serve", "router", "prefill", "decode", "engine", "transfer")
_SCALARS = (str, int, float, bool, Path)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class Option:
    """What a person must know of one option. Bounds are inclusive."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option as found in a class.

    ``table``: the nested field it comes from, "" for the class's own.
    ``kind`` is str, int, float, bool or Path; with ``repeatable`` the value is a tuple of str.
    """

    name: str
    table: str
    kind: type
    repeatable: bool
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        return self.flag_for("")

    def flag_for(self, prefix: str) -> str:
        """``prefix`` is "" or like "prefill_". Repeatable flags are in the singular."""
        name = self.name.removesuffix("s") if self.repeatable else self.name
        return "--" + (prefix + name).replace("_", "-")


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything a value can come from. ``flags`` holds text (or a list of it) by field name."""

    flags: Mapping[str, str | list[str]]
    environment: Mapping[str, str]
    document: Mapping[str, Any]
    file: Path | None = None


def option_fields(cls: type) -> tuple[OptionField, ...]:
    """All options of a configuration class, nested ones included, in order of definition.

    Raises:
        TypeError: a field has no ``Option``, is of a kind that has no text form, or two have one
            name.
    """
    found = tuple(_walk(cls, None, ""))
    names = [field.name for field in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{cls.__name__}: two options are named {sorted(twice)}")
    return found


def read_sources(flags: Mapping[str, str | list[str]], file: str | Path | None = None) -> Sources:
    """Flags as given, the environment and the TOML file.

    Raises:
        ConfigError: the file cannot be read, or has keys outside tables or an unknown table.
    """
    environment = dict(os.environ)
    name = file or environment.get(ENVIRONMENT_PREFIX + "CONFIG") or None
    path = Path(name) if name is not None else None
    return Sources(flags, environment, _read_document(path) if path else {}, path)


def build_config(
    cls: type[ConfigT], section: str, sources: Sources, *, beside: tuple[type, ...] = ()
) -> ConfigT:
    """A configuration of ``cls`` for the role ``section``.

    ``beside``: other classes that are read from the same table of the file.

    Raises:
        ConfigError: a value is out of bounds or of a wrong kind (names option and source), or the
            file has a key that no class here knows (names the nearest one).
    """
    _refuse_unknown_keys((cls, *beside), section, sources)
    values = {field.name: _value(field, section, sources) for field in option_fields(cls)}
    return typing.cast(ConfigT, _assemble(cls, values))


def environment_names(cls: type, section: str) -> frozenset[str]:
    """Every environment variable that ``build_config`` reads for this class and role."""
    names: set[str] = set()
    for field in option_fields(cls):
        names.add(ENVIRONMENT_PREFIX + field.name.upper())
        names.add(f"{ENVIRONMENT_PREFIX}{section.upper()}_{field.name.upper()}")
    return frozenset(names)


def environment_without(names: Iterable[str]) -> dict[str, str]:
    """The environment for a child whose options all come as flags."""
    dropped = set(names)
    return {key: value for key, value in os.environ.items() if key not in dropped}


def cache_folder() -> Path:
    """Where prepared models are kept: ``$PDSERVE_CACHE``, else ``~/.cache/pdserve``."""
    named = os.environ.get(ENVIRONMENT_PREFIX + "CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "pdserve"


def to_flags(config: object) -> list[str]:
    """The flags that rebuild ``config``: what differs from the defaults of its class."""
    flags: list[str] = []
    for field in option_fields(type(config)):
        holder = getattr(config, field.table) if field.table else config
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


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _walk(cls: type, defaults: object | None, table: str) -> Iterator[OptionField]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        default = getattr(defaults, field.name) if defaults is not None else _default(field)
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if table:
                raise TypeError(f"{cls.__name__}.{field.name}: configurations nest one level only")
            yield from _walk(hint, None if default is dataclasses.MISSING else default, field.name)
            continue
        options = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Option)]
        if not options:
            raise TypeError(f"{cls.__name__}.{field.name} has no Option")
        kind, repeatable = _kind(cls, field.name, typing.get_args(hint)[0])
        yield OptionField(field.name, table, kind, repeatable, options[0], default)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _kind(cls: type, name: str, hint: Any) -> tuple[type, bool]:
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return str, True
    if hint not in _SCALARS:
        raise TypeError(f"{cls.__name__}.{name}: {hint} is not a kind of option")
    return typing.cast(type, hint), False


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path}: not TOML: {error}") from error
    for key, value in document.items():
        if not isinstance(value, dict):
            raise ConfigError(f"config file {path}: {key!r} stands outside a table like [serve]")
        if key not in SECTIONS:
            raise ConfigError(f"config file {path}: unknown table [{key}]{nearest(key, SECTIONS)}")
    return document


def _refuse_unknown_keys(classes: tuple[type, ...], section: str, sources: Sources) -> None:
    """The role's own table and those of its nested parts; other roles read theirs."""
    fields = [field for cls in classes for field in option_fields(cls)]
    known = {section: {field.name for field in fields}}
    for field in fields:
        if field.table and field.table != section:
            known.setdefault(field.table, set()).add(field.name)
    for table, names in known.items():
        for key in sources.document.get(table, {}):
            if key not in names:
                raise ConfigError(
                    f"config file {sources.file}: [{table}] has no option {key!r}"
                    f"{nearest(key, names)}"
                )


def _candidates(field: OptionField, section: str, sources: Sources) -> Iterator[tuple[str, Any]]:
    """(where, raw value) from the strongest source to the weakest."""
    for prefix in (f"{section}_", ""):
        if prefix + field.name in sources.flags:
            yield field.flag_for(prefix), sources.flags[prefix + field.name]
    for name in (f"{section}_{field.name}", field.name):
        variable = ENVIRONMENT_PREFIX + name.upper()
        # An empty variable is an unset one: compose files and shells leave such behind.
        if text := sources.environment.get(variable):
            yield f"environment variable {variable}", text.split(",") if field.repeatable else text
    for table in (section, field.table):
        if table and field.name in sources.document.get(table, {}):
            yield f"{sources.file} [{table}]", sources.document[table][field.name]


def _value(field: OptionField, section: str, sources: Sources) -> Any:
    for where, raw in _candidates(field, section, sources):
        return _checked(field, raw, where)
    if field.default is dataclasses.MISSING:
        raise ConfigError(f"option {field.flag} must be given ({field.option.help})")
    return field.default


def _checked(field: OptionField, raw: Any, where: str) -> Any:
    def refuse(problem: str) -> ConfigError:
        return ConfigError(f"{field.name} {problem}, not {raw!r} (from {where})")

    if field.repeatable:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise refuse("must be a list of texts")
        return tuple(item.strip() for item in raw if item.strip())
    value = _converted(field.kind, raw)
    if value is None:
        raise refuse(f"must be {_KIND_WORDS[field.kind]}")
    option = field.option
    if option.choices and value not in option.choices:
        text = str(value)
        raise refuse(f"must be one of {', '.join(option.choices)}{nearest(text, option.choices)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        unit = f" {option.unit}" if option.unit else ""
        if option.low is not None and value < option.low:
            raise refuse(f"must be at least {option.low:g}{unit}")
        if option.high is not None and value > option.high:
            raise refuse(f"must be at most {option.high:g}{unit}")
    return value


_KIND_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}


def _converted(kind: type, raw: Any) -> Any:
    """``raw`` (text, or a TOML value) as ``kind``; None if it is not one."""
    if kind is bool:
        if isinstance(raw, str):
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(raw.lower())
        return raw if isinstance(raw, bool) else None
    if kind in (str, Path):
        return kind(raw) if isinstance(raw, str) else None
    if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
        return None
    try:
        number = kind(raw)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _assemble(cls: type, values: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        arguments[field.name] = _assemble(hint, values) if nested else values[field.name]
    return cls(**arguments)
