"""``pdserve config show [ROLE] [OPTIONS OF ROLE]``: every value and where it came from.

``pdserve config example`` prints a file with every option, ``pdserve config page`` the reference
(docs/configuration.md). Nothing is started and no heavy library is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.catalogue import check_file, known_variables
from cluster.config import ShowConfig
from cluster.configuration_page import configuration_page, example_file
from cluster.plan import resolve_plan, service_parser
from decode_worker.config import DecodeConfig
from pdserve.config import Resolved, Sources, build_config, resolve, unknown_variables
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser
from pdserve.option_values import nearest
from pdserve.role_options import PROCESS_CLASSES, read_role, role_parser
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

_ACTIONS = ("show", "example", "page")
_ROLES: Mapping[str, type] = {
    "router": RouterConfig, "prefill": PrefillConfig, "decode": DecodeConfig,
}  # fmt: skip
_USAGE = """\
usage: pdserve config show [ROLE] [OPTIONS OF ROLE] [--changed] [--json]
       pdserve config example
       pdserve config page

show     every option of ROLE (serve, router, prefill or decode; default serve): value and origin
example  a TOML file with every option at its default
page     the reference of all options, as Markdown

pdserve config show ROLE --help lists the options of ROLE."""


def run_config(argv: Sequence[str]) -> int:
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    action = arguments.pop(0)
    if action not in _ACTIONS:
        raise ConfigError(f"unknown action {action!r}{nearest(action, _ACTIONS)}")
    if action == "show":
        return _show(arguments)
    if arguments:
        raise ConfigError(f"unknown argument {arguments[0]!r}: {action} takes none")
    print(example_file() if action == "example" else configuration_page(), end="")
    return 0


def _show(arguments: list[str]) -> int:
    role = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "serve"
    parser = _parser(role)
    parser.add_options("show", ShowConfig)
    sources = parser.parse(arguments)
    show = build_config(ShowConfig, "config", sources)
    found = _resolved(role, sources)
    if show.changed:
        found = {
            name: tuple(each for each in options if not each.is_default)
            for name, options in found.items()
        }
    print(json.dumps(_rows(found), indent=1) if show.json else _text(found))
    return 0


def _parser(role: str) -> FlagParser:
    prog = f"pdserve config show {role}"
    if role == "serve":
        return service_parser(prog, "Values of the options of pdserve serve.")
    if role not in _ROLES:
        known = ("serve", *_ROLES)
        raise ConfigError(f"unknown role {role!r}: {', '.join(known)}{nearest(role, known)}")
    return role_parser(prog, f"Values of the options of pdserve {role}.", role, _ROLES[role])


def _resolved(role: str, sources: Sources) -> dict[str, tuple[Resolved, ...]]:
    """By role, after every check that the command itself makes of its options."""
    if role == "serve":
        return resolve_plan(sources)
    check_file(sources)
    read_role(role, _ROLES[role], sources)
    classes = (_ROLES[role], *PROCESS_CLASSES)
    return {role: tuple(each for cls in classes for each in resolve(cls, role, sources))}


def _rows(found: Mapping[str, tuple[Resolved, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "option": each.field.name,
            "value": list(each.value) if each.field.repeatable else each.value,
            "unit": each.field.option.unit,
            "origin": each.origin,
        }
        for role, options in found.items()
        for each in options
    ]


def _text(found: Mapping[str, tuple[Resolved, ...]]) -> str:
    cells = {role: [_cells(each) for each in options] for role, options in found.items()}
    every = [row for rows in cells.values() for row in rows]
    widths = [max((len(row[column]) for row in every), default=0) for column in range(2)]
    lines: list[str] = []
    for role, rows in cells.items():
        lines += [f"[{role}]"] if rows else [f"[{role}] nothing but defaults"]
        lines += [
            f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows
        ]
    for name, meant in unknown_variables(known_variables()).items():
        lines.append(f"warning: {name} is no option; did you mean {meant}?")
    return "\n".join(lines)


def _cells(each: Resolved) -> tuple[str, str, str]:
    value = each.value
    if isinstance(value, bool):
        text = "on" if value else "off"
    elif each.field.repeatable:
        text = ", ".join(value)
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    unit = each.field.option.unit
    return each.field.name, f"{text or '(empty)'}{' ' + unit if unit else ''}", each.origin
