"""One definition per option: page, example file and catalogue hold every option there is."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from collections import defaultdict
from pathlib import Path

import pytest

from cluster.catalogue import CATALOGUE, known_variables
from cluster.config import ShowConfig
from cluster.configuration_page import configuration_page, example_file
from cluster.plan import read_plan, service_parser
from pdserve.config import Option, OptionField, option_fields, read_sources
from support.source_tree import PACKAGES, ROOT, package_files, relative

STALE = "is stale: run `pdserve config {} > docs/{}`"


def test_the_page_is_what_the_definitions_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), STALE.format("page", "configuration.md")


def test_the_example_file_is_what_the_definitions_say() -> None:
    file = (ROOT / "docs" / "pdserve.example.toml").read_text(encoding="utf-8")
    assert file == example_file(), STALE.format("example", "pdserve.example.toml")


def test_the_example_file_changes_nothing() -> None:
    with_file = service_parser("serve", "about").parse(
        ["--config", str(ROOT / "docs" / "pdserve.example.toml")]
    )
    assert read_plan(with_file) == read_plan(service_parser("serve", "about").parse([]))


def test_the_example_file_has_every_option_once() -> None:
    document = read_sources({}, ROOT / "docs" / "pdserve.example.toml").document
    for section in CATALOGUE:
        for field in option_fields(section.cls):
            assert field.name in document[field.holder or field.option.table or section.name]


def option_classes() -> dict[str, type]:
    """Every dataclass of our packages that has an Option, by name."""
    found: dict[str, type] = {}
    for path in package_files():
        if not re.search(r"\bOption\(|shared_options", path.read_text(encoding="utf-8")):
            continue
        module = importlib.import_module(".".join(Path(relative(path)).with_suffix("").parts))
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and dataclasses.is_dataclass(value)
                and value.__module__.split(".")[0] in PACKAGES
                and _has_options(value)
            ):
                found[value.__name__] = value
    return found


def _has_options(cls: type) -> bool:
    hints = typing.get_type_hints(cls, include_extras=True)
    return any(
        isinstance(note, Option)
        for hint in hints.values()
        for note in getattr(hint, "__metadata__", ())
    )


def test_the_catalogue_has_every_class_of_options() -> None:
    listed = {section.cls.__name__ for section in CATALOGUE}
    # Of `pdserve config show` itself: flags alone, no table.
    assert set(option_classes()) - {ShowConfig.__name__} == listed


# One name, two meanings, each in its own role: the router's address and a worker's host:port.
TWO_MEANINGS = {"listen", "step_tokens", "model", "temperature"}


def test_an_option_of_several_classes_is_defined_once() -> None:
    homes: dict[str, list[tuple[str, OptionField]]] = defaultdict(list)
    for section in CATALOGUE:
        for field in option_fields(section.cls):
            if not field.holder and field.name not in TWO_MEANINGS:
                homes[field.name].append((section.name, field))
    for name, found in homes.items():
        first = found[0][1]
        for section_name, field in found[1:]:
            assert field.option is first.option, f"{name} of {section_name}: use one alias"
            assert field.default == first.default, f"{name} of {section_name}"


@pytest.mark.parametrize("section", CATALOGUE, ids=[each.name for each in CATALOGUE])
def test_every_option_has_its_variable(section: object) -> None:
    assert isinstance(section, type(CATALOGUE[0]))
    for field in section.fields():
        name = f"{section.name}_{field.name}" if field.option.private else field.name
        assert "PDSERVE_" + name.upper() in known_variables()
