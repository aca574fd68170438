"""Where a value comes from, what is refused, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from pdserve.config import (
    Option,
    Sources,
    build_config,
    environment_names,
    option_fields,
    read_sources,
    refuse_unknown_keys,
    resolve,
    unknown_variables,
)
from pdserve.errors import ConfigError
from pdserve.flags import FlagParser, to_flags


@dataclass(frozen=True, slots=True)
class PartConfig:
    threads: Annotated[int, Option("compute threads", low=0, high=64)] = 0
    dtype: Annotated[str, Option("type", choices=("float32", "bfloat16"))] = "float32"


@dataclass(frozen=True, slots=True)
class WholeConfig:
    part: PartConfig = field(default_factory=lambda: PartConfig(threads=3))
    listen: Annotated[str, Option("address to listen on")] = "127.0.0.1"
    grace_s: Annotated[float, Option("time to finish", unit="s", low=0)] = 10.0
    routers: Annotated[tuple[str, ...], Option("router to dial, host:port")] = ()
    strict: Annotated[bool, Option("refuse fallback")] = False
    folder: Annotated[Path, Option("somewhere")] = Path("here")


def build(
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    document: dict[str, Any] | None = None,
) -> WholeConfig:
    sources = Sources(flags or {}, environment or {}, document or {}, Path("some.toml"))
    return build_config(WholeConfig, "prefill", sources)


def parse(*argv: str) -> WholeConfig:
    parser = FlagParser("prog", "about")
    parser.add_options("options", WholeConfig)
    return build_config(WholeConfig, "prefill", parser.parse(argv))


def test_defaults_are_the_instances_own_and_not_the_nested_classs() -> None:
    assert build() == WholeConfig()
    assert build().part.threads == 3
    assert {f.name: f.default for f in option_fields(WholeConfig)}["threads"] == 3


ORDER = [
    ("flags", {"prefill_threads": "1"}),
    ("flags", {"threads": "2"}),
    ("environment", {"PDSERVE_PREFILL_THREADS": "3"}),
    ("environment", {"PDSERVE_THREADS": "4"}),
    ("document", {"prefill": {"threads": 5}}),
    ("document", {"engine": {}, "part": {"threads": 6}}),
]


@pytest.mark.parametrize("strongest", range(len(ORDER)))
def test_stronger_sources_win(strongest: int) -> None:
    places: dict[str, dict[str, Any]] = {"flags": {}, "environment": {}, "document": {}}
    for place, values in ORDER[strongest:]:
        places[place].update(values)
    assert build(**places).part.threads == strongest + 1


def test_another_roles_names_are_not_looked_at() -> None:
    environment = {"PDSERVE_DECODE_THREADS": "7"}
    document = {"decode": {"threads": 8, "no_such_thing": 1}}
    assert build({"decode_threads": "9"}, environment, document).part.threads == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"grace_s": "2.5"}, WholeConfig(grace_s=2.5)),
        ({"routers": ["a:1", "b:2"]}, WholeConfig(routers=("a:1", "b:2"))),
        ({"strict": "true"}, WholeConfig(strict=True)),
        ({"folder": "/there"}, WholeConfig(folder=Path("/there"))),
    ],
)
def test_kinds_of_values(flags: dict[str, Any], expected: WholeConfig) -> None:
    assert build(flags) == expected


def test_environment_lists_are_cut_at_commas_and_empty_is_unset() -> None:
    built = build(environment={"PDSERVE_ROUTERS": "a:1, b:2", "PDSERVE_GRACE_S": ""})
    assert built.routers == ("a:1", "b:2")
    assert built.grace_s == 10.0


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"flags": {"threads": "65"}}, ["threads", "at most 64", "'65'", "--threads"]),
        ({"flags": {"grace_s": "-1"}}, ["grace_s", "at least 0 s", "--grace-s"]),
        ({"flags": {"grace_s": "nan"}}, ["grace_s", "a number"]),
        (
            {"environment": {"PDSERVE_PREFILL_THREADS": "two"}},
            ["threads", "whole number", "PDSERVE_PREFILL_THREADS"],
        ),
        (
            {"environment": {"PDSERVE_STRICT": "perhaps"}},
            ["strict", "true or false", "PDSERVE_STRICT"],
        ),
        (
            {"document": {"part": {"dtype": "bfloat61"}}},
            ["dtype", "float32, bfloat16", "did you mean 'bfloat16'", "some.toml [part]"],
        ),
        ({"document": {"part": {"threads": 1.5}}}, ["threads", "whole number", "1.5"]),
        ({"document": {"prefill": {"threads": True}}}, ["threads", "whole number", "True"]),
        ({"document": {"prefill": {"listen": 80}}}, ["listen", "text", "80"]),
        ({"document": {"prefill": {"routers": "a:1"}}}, ["routers", "list of texts"]),
        (
            {"document": {"prefill": {"thraeds": 1}}},
            ["some.toml", "[prefill]", "'thraeds'", "did you mean 'threads'"],
        ),
        ({"document": {"part": {"listen": "x"}}}, ["[part]", "'listen'"]),
    ],
)
def test_refusals_name_the_option_and_the_source(places: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**places)
    for word in words:
        assert word in str(caught.value)


@dataclass(frozen=True, slots=True)
class RouterLike:
    TABLE: ClassVar = "log"

    level: Annotated[str, Option("how much")] = "info"
    model: Annotated[str, Option("which", table="engine")] = "small"
    ask: Annotated[str, Option("a name", private=True)] = ""


def test_shared_tables_of_a_class_and_of_one_option() -> None:
    document = {"log": {"level": "debug"}, "engine": {"model": "large", "threads": 2}}
    built = build_config(RouterLike, "router", Sources({}, {}, document, None))
    assert (built.level, built.model) == ("debug", "large")
    document["router"] = {"model": "own"}
    assert build_config(RouterLike, "router", Sources({}, {}, document, None)).model == "own"


def test_a_private_option_is_not_read_under_its_shared_name() -> None:
    environment = {"PDSERVE_ASK": "shared"}
    assert build_config(RouterLike, "router", Sources({}, environment, {}, None)).ask == ""
    environment["PDSERVE_ROUTER_ASK"] = "own"
    assert build_config(RouterLike, "router", Sources({}, environment, {}, None)).ask == "own"


def test_origins() -> None:
    sources = Sources(
        {"level": "debug"}, {"PDSERVE_ROUTER_MODEL": "m"}, {"router": {"ask": "x"}}, Path("a.toml")
    )
    found = {each.field.name: each for each in resolve(RouterLike, "router", sources)}
    assert [(each.value, each.origin, each.own) for each in found.values()] == [
        ("debug", "--level", False),
        ("m", "environment variable PDSERVE_ROUTER_MODEL", True),
        ("x", "a.toml [router]", True),
    ]
    assert all(each.is_default for each in resolve(RouterLike, "router", Sources({}, {}, {})))


def test_a_key_that_belongs_elsewhere_is_told_where() -> None:
    sources = Sources({}, {}, {"router": {"threads": 1}}, Path("a.toml"))
    with pytest.raises(
        ConfigError, match=r"\[router\] has no option 'threads'; it belongs in \[en"
    ):
        refuse_unknown_keys(sources, {"router": {"model"}, "engine": {"threads"}})


def test_variables_that_look_like_a_misspelt_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSERVE_THRAEDS", "2")
    monkeypatch.setenv("PDSERVE_THREADS_TCP", "tcp://10.0.0.1:80")
    monkeypatch.setenv("PDSERVE_SOMETHING_ELSE", "2")
    assert unknown_variables({"PDSERVE_THREADS"}) == {"PDSERVE_THRAEDS": "PDSERVE_THREADS"}


def test_classes_beside_each_other_share_a_table() -> None:
    sources = Sources({}, {}, {"decode": {"grace_s": 3.0, "threads": 2}}, Path("some.toml"))
    with pytest.raises(ConfigError, match="no option 'grace_s'"):
        build_config(PartConfig, "decode", sources)
    assert build_config(PartConfig, "decode", sources, beside=(WholeConfig,)).threads == 2


def test_flags_round_trip() -> None:
    config = WholeConfig(
        PartConfig(threads=5, dtype="bfloat16"), "0.0.0.0", -0.0 + 1.5, ("a:1", "-b"), True
    )
    assert parse(*to_flags(config)) == config
    assert to_flags(WholeConfig()) == []
    assert parse(*to_flags(WholeConfig(strict=False))) == WholeConfig()


def test_a_flag_can_switch_off_what_the_environment_switched_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PDSERVE_STRICT", "1")
    assert parse().strict
    assert not parse("--no-strict").strict


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--thread", "1"], ["unknown argument '--thread'", "did you mean '--threads'"]),
        (["--threads"], ["--threads", "expected one argument"]),
        (["stray"], ["unknown argument 'stray'"]),
    ],
)
def test_unknown_flags_are_refused(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    for word in words:
        assert word in str(caught.value)


def test_help_shows_unit_choices_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--grace-s s time to finish (in s, default 10)" in text
    assert "--dtype float32|bfloat16" in text
    assert "--threads N compute threads (default 3)" in text
    assert "may be repeated, default none" in text


def test_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pdserve.toml"
    file.write_text('[engine]\nthreads = 2\n[prefill]\nlisten = "::1"\nrouters = ["a:1"]\n')
    parser = FlagParser("prog", "about")
    parser.add_options("options", WholeConfig)
    built = build_config(WholeConfig, "prefill", parser.parse(["--config", str(file)]))
    assert (built.listen, built.routers) == ("::1", ("a:1",))
    monkeypatch.setenv("PDSERVE_CONFIG", str(file))
    assert parse().listen == "::1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("threads = 1", "'threads' stands outside a table"),
        ("[prefil]\n", "unknown table [prefil]; did you mean 'prefill'?"),
        ("[prefill", "not TOML"),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_sources({}, file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_absent_config_file() -> None:
    with pytest.raises(ConfigError, match=r"no-such\.toml: No such file"):
        read_sources({}, "no-such.toml")


def test_environment_names_are_those_that_are_read() -> None:
    names = environment_names(WholeConfig, "prefill")
    assert {"PDSERVE_THREADS", "PDSERVE_PREFILL_THREADS", "PDSERVE_LISTEN"} <= names
    assert "PDSERVE_CACHE" not in names


def test_a_class_without_option_or_with_a_name_twice_is_a_mistake() -> None:
    @dataclass(frozen=True)
    class Bare:
        threads: int = 0

    @dataclass(frozen=True)
    class Twice:
        threads: Annotated[int, Option("x")] = 0
        part: PartConfig = field(default_factory=PartConfig)

    @dataclass(frozen=True)
    class Odd:
        names: Annotated[list[str], Option("x")] = field(default_factory=list)

    for cls in (Bare, Twice, Odd):
        with pytest.raises(TypeError, match=r"threads|names"):
            option_fields(cls)
