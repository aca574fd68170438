"""One definition per option: a field of a frozen dataclass, annotated with ``Option``.

    chunk_tokens: Annotated[int, Option("prefill chunk", unit="tokens", low=16)] = 256

From that one line come the flag (pdserve/flags.py), the environment variable, the key of the TOML
file, the check of bounds, the help and its row in docs/configuration.md. An option that several
classes have is one ``Annotated`` alias that all of them use (pdserve/shared_options.py).
Configurations nest: ``engine: EngineConfig`` in a room's class makes the engine's options the
room's, under the table ``[engine]``.

A value is looked for in this order; in each place the role's own name goes before the shared one:

    flag          --prefill-chunk-tokens   --chunk-tokens
    environment   PDSERVE_PREFILL_CHUNK_TOKENS   PDSERVE_CHUNK_TOKENS
    file          [prefill] chunk_tokens   [engine] chunk_tokens
    default

This module does not know which options exist (each room's config.py does; cluster/catalogue.py
gathers them). It is the one place that reads the environment. Not covered: reloading while running.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pdserve.errors import ConfigError
from pdserve.option_values import SCALARS, checked_value, nearest

ENVIRONMENT_PREFIX = "PDSERVE_"
ROLE_SECTIONS = ("serve", "router", "prefill", "decode")
SHARED_SECTIONS = ("engine", "transfer", "tracing", "process", "log")
COMMAND_SECTIONS = (
    "batch", "compare", "generate", "status", "trace", "explain", "model", "doctor", "ray",
    "cluster",
)  # fmt: skip
SECTIONS = (*ROLE_SECTIONS, *SHARED_SECTIONS, *COMMAND_SECTIONS)

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class Option:
    """What a person must know of one option. Bounds are inclusive.

    ``table``: a shared table of the file where the option is found besides its role's own; "": that
    of its class. ``private``: never read under the shared name from the environment.
    """

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    table: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option as found in a class.

    ``holder``: the nested field it comes from, "" for the class's own. ``table``: the shared table
    of the file, "" for none. ``kind`` is str, int, float, bool or Path; with ``repeatable`` the
    value is a tuple of str.
    """

    name: str
    holder: str
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
class Resolved:
    """One option's value and where it came from.

    ``origin``: a flag, "environment variable X", "FILE [table]" or "default". ``own``: it was given
    under the role's own name.
    """

    field: OptionField
    value: Any
    origin: str
    own: bool

    @property
    def is_default(self) -> bool:
        return self.origin == "default"


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
    found = tuple(_walk(cls, None, "", getattr(cls, "TABLE", "")))
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
    refuse_unknown_keys(sources, _known_keys((cls, *beside), section))
    values = {each.field.name: each.value for each in resolve(cls, section, sources)}
    return typing.cast(ConfigT, _assemble(cls, values))


def resolve(cls: type, section: str, sources: Sources) -> tuple[Resolved, ...]:
    """Every option of ``cls`` as the role ``section`` gets it, in order of definition.

    Raises:
        ConfigError: a value is out of bounds or of a wrong kind; names option and source.
    """
    return tuple(_resolve(field, section, sources) for field in option_fields(cls))


def refuse_unknown_keys(sources: Sources, known: Mapping[str, Collection[str]]) -> None:
    """Check those tables of the file that ``known`` lists, each with its keys.

    Raises:
        ConfigError: a key is unknown; names the table it belongs to, or the nearest key of its own.
    """
    for table, names in known.items():
        for key in sources.document.get(table, {}):
            if key in names:
                continue
            tables = (*ROLE_SECTIONS, *SHARED_SECTIONS)
            homes = [each for each in tables if key in known.get(each, ())]
            hint = f"; it belongs in [{'] or ['.join(homes)}]" if homes else nearest(key, names)
            raise ConfigError(f"config file {sources.file}: [{table}] has no option {key!r}{hint}")


def environment_names(cls: type, section: str) -> frozenset[str]:
    """Every environment variable that ``build_config`` reads for this class and role."""
    names: set[str] = set()
    for field in option_fields(cls):
        names.update(ENVIRONMENT_PREFIX + name.upper() for name in _names(field, section))
    return frozenset(names)


def unknown_variables(known: Collection[str]) -> dict[str, str]:
    """Variables of this process that look like a misspelt option of ours, and the nearest option.

    Not an error: orchestrators put variables of their own beside ours (a Kubernetes service named
    pdserve-router gives every pod PDSERVE_ROUTER_PORT=tcp://...).
    """
    ours = {
        name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)
    }
    close = {
        name: difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        for name, value in ours.items()
        if name not in known and "://" not in value
    }
    return {name: matches[0] for name, matches in close.items() if matches}


def environment_without(names: Iterable[str]) -> dict[str, str]:
    """The environment for a child whose options all come as flags."""
    dropped = set(names)
    return {key: value for key, value in os.environ.items() if key not in dropped}


def keep_grpc_quiet() -> None:
    """Before gRPC is loaded: else it prints a line whenever this process starts another one."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def malloc_is_told() -> bool:
    """Whether somebody has set glibc's malloc from outside (mallopt(3))."""
    told = any(name.startswith("MALLOC_") for name in os.environ)
    return told or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")


def cache_folder() -> Path:
    """Where prepared models are kept: ``$PDSERVE_CACHE``, else ``~/.cache/pdserve``."""
    named = os.environ.get(ENVIRONMENT_PREFIX + "CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "pdserve"


def _walk(cls: type, defaults: object | None, holder: str, table: str) -> Iterator[OptionField]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        default = getattr(defaults, field.name) if defaults is not None else _default(field)
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if holder:
                raise TypeError(f"{cls.__name__}.{field.name}: configurations nest one level only")
            inner = None if default is dataclasses.MISSING else default
            yield from _walk(hint, inner, field.name, field.name)
            continue
        options = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Option)]
        if not options:
            raise TypeError(f"{cls.__name__}.{field.name} has no Option")
        kind, repeatable = _kind(cls, field.name, typing.get_args(hint)[0])
        option = options[0]
        place = option.table or table
        yield OptionField(field.name, holder, place, kind, repeatable, option, default)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _kind(cls: type, name: str, hint: Any) -> tuple[type, bool]:
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return str, True
    if hint not in SCALARS:
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


def _known_keys(classes: tuple[type, ...], section: str) -> dict[str, set[str]]:
    """The role's own table and those its parts have for themselves; other roles check theirs."""
    fields = [field for cls in classes for field in option_fields(cls)]
    known = {section: {field.name for field in fields}}
    for field in fields:
        home = field.holder or (field.table if not field.option.table else "")
        if home and home != section:
            known.setdefault(home, set()).add(field.name)
    return known


def _names(field: OptionField, section: str) -> tuple[str, ...]:
    """Names of the option in flags and environment, the role's own first."""
    own = f"{section}_{field.name}"
    return (own,) if field.option.private else (own, field.name)


def _candidates(
    field: OptionField, section: str, sources: Sources
) -> Iterator[tuple[str, bool, Any]]:
    """(origin, whether under the role's own name, raw value), from the strongest to the weakest."""
    for prefix in (f"{section}_", ""):
        if prefix + field.name in sources.flags:
            yield field.flag_for(prefix), bool(prefix), sources.flags[prefix + field.name]
    for name in _names(field, section):
        variable = ENVIRONMENT_PREFIX + name.upper()
        # An empty variable is an unset one: compose files and shells leave such behind.
        if text := sources.environment.get(variable):
            raw = text.split(",") if field.repeatable else text
            yield f"environment variable {variable}", name != field.name, raw
    for table in (section, field.table):
        if table and field.name in sources.document.get(table, {}):
            raw = sources.document[table][field.name]
            yield f"{sources.file} [{table}]", table == section, raw


def _resolve(field: OptionField, section: str, sources: Sources) -> Resolved:
    for origin, own, raw in _candidates(field, section, sources):
        value = checked_value(field.name, field.kind, field.repeatable, field.option, raw, origin)
        return Resolved(field, value, origin, own)
    if field.default is dataclasses.MISSING:
        raise ConfigError(f"option {field.flag} must be given ({field.option.help})")
    return Resolved(field, field.default, "default", own=False)


def _assemble(cls: type, values: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        arguments[field.name] = _assemble(hint, values) if nested else values[field.name]
    return cls(**arguments)
