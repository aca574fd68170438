"""docs/configuration.md and docs/pdserve.example.toml, made from the catalogue of options.

``pdserve config page`` and ``pdserve config example`` print them; a test holds the tracked files to
what is printed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cluster.catalogue import CATALOGUE, Section
from pdserve.config import ENVIRONMENT_PREFIX, OptionField

_HEAD = """\
# Configuration

Every option of every command. This page is made by `pdserve config page` from the definitions in
the code; a test fails when it is stale. [pdserve.example.toml](pdserve.example.toml) is a file with
every option at its default, made by `pdserve config example`.

## Where a value comes from

Every option is a flag, an environment variable and a key of a TOML file (`--config FILE` or
`PDSERVE_CONFIG`). The first place that has it wins; in each place the role's own name goes before
the shared one:

| place | for one role | for every role that has it |
|---|---|---|
| flag | `--decode-threads 2` (of `pdserve serve`) | `--threads 2` |
| environment | `PDSERVE_DECODE_THREADS=2` | `PDSERVE_THREADS=2` |
| file | `[decode]` `threads = 2` | `[engine]` `threads = 2` |
| default | | |

    pdserve config show                              # of `pdserve serve`: every value, its origin
    pdserve config show decode --config my.toml      # of one role; takes that role's flags
    pdserve config show --changed --json

- An unknown flag, table or key is refused by name with the nearest known one, in every table, also
  those that the role at hand does not read. A `PDSERVE_` variable close to a known one is warned
  about.
- A value of a wrong kind or out of bounds is refused with the option, the bound and the place it
  came from.
- A switch is turned off by `--no-NAME`; in the environment and the file it is `true` or `false`.
- An option that may be repeated (`--router a:1 --router b:1`) is a list in the file
  (`routers = ["a:1", "b:1"]`) and separated by commas in the environment.
- A flag that ends in `-mib` may be written without it: `--kv-memory 512`.
- An empty environment variable counts as unset.
- Under `pdserve serve`, `--listen` and `PDSERVE_LISTEN` are the router's; a prefill worker's are
  `--prefill-listen` and `PDSERVE_PREFILL_LISTEN`. Names of workers and the routers they dial are
  set by the launcher.
- `PDSERVE_CACHE` names the folder of prepared models (default `~/.cache/pdserve`); it has no flag.
"""


def configuration_page() -> str:
    """The whole of docs/configuration.md."""
    return "\n".join([_HEAD, *(_section(each) for each in CATALOGUE)])


def example_file() -> str:
    """A TOML file with every option at its default; reading it changes nothing."""
    lines = [
        "# Every option at its default. Keep the lines you change. `pdserve config show`",
        "# tells what a command makes of a file; docs/configuration.md explains the options.",
        "# An option of [engine], [transfer], [tracing], [process] or [log] may also stand in the",
        "# table of one role ([router], [prefill], [decode]) and wins there.",
    ]
    for section in CATALOGUE:
        fields = section.fields()
        if not fields:
            continue
        lines += ["", f"# {section.about.replace('`', '')}", f"[{section.name}]"]
        for field in fields:
            lines += [f"# {_meaning(field)}", f"{field.name} = {_toml(field.default)}"]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> str:
    lines = [f"## [{section.name}]", "", f"Read by {section.about}."]
    if borrowed := section.borrowed():
        tables = sorted({f"[{field.table}]" for field in borrowed})
        lines += ["", f"Every option of {', '.join(tables)} that this role has may stand here too."]
    lines += ["", "| option | default | what it does |", "|---|---|---|"]
    lines += [
        f"| {_names(section, field)} | {_default(field)} | {_cell(_meaning(field))} |"
        for field in section.fields()
    ]
    return "\n".join(lines) + "\n"


def _names(section: Section, field: OptionField) -> str:
    """Key of the file, flag, variable."""
    own = f"{section.name}_{field.name}" if field.option.private else field.name
    if field.kind is bool and not field.repeatable and field.default:
        flag = f"{field.flag}, --no-{field.flag[2:]}"
    else:
        flag = field.flag
    return f"`{field.name}`<br>`{flag}`<br>`{ENVIRONMENT_PREFIX}{own.upper()}`"


def _default(field: OptionField) -> str:
    if field.default is dataclasses.MISSING:
        return "must be given"
    return f"`{_toml(field.default)}`"


def _meaning(field: OptionField) -> str:
    option = field.option
    facts = [option.unit] if option.unit else []
    if option.choices:
        facts.append("one of " + ", ".join(option.choices))
    if field.kind in (int, float):
        if option.low is not None and option.high is not None:
            facts.append(f"{_number(option.low)} to {_number(option.high)}")
        elif option.low is not None:
            facts.append(f"at least {_number(option.low)}")
        elif option.high is not None:
            facts.append(f"at most {_number(option.high)}")
    if field.repeatable:
        facts.append("a list")
    return option.help + (f" ({'; '.join(facts)})" if facts else "")


def _number(value: float) -> str:
    return f"{int(value)}" if float(value).is_integer() else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _toml(value: object) -> str:
    """``value`` as TOML writes it. JSON's texts, numbers, switches and lists are TOML's too."""
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value, ensure_ascii=False)
