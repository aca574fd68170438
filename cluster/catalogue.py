"""Every option there is, by table of the configuration file.

The reference page, the example file, ``pdserve config show`` and the check of a whole file are made
from it.

A new class of options gets a line here; a test finds classes that have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.batch.config import BatchConfig
from cluster.compare.config import CompareConfig
from cluster.config import (
    DoctorConfig,
    ExplainConfig,
    GenerateConfig,
    ModelConfig,
    ServeConfig,
    StatusConfig,
    TraceCommandConfig,
)
from cluster.onray.config import ClusterConfig, RayConfig
from decode_worker.config import DecodeConfig
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from pdserve.app import ProcessConfig
from pdserve.config import (
    COMMAND_SECTIONS,
    ENVIRONMENT_PREFIX,
    ROLE_SECTIONS,
    OptionField,
    Sources,
    environment_names,
    option_fields,
    refuse_unknown_keys,
)
from pdserve.log import LogConfig
from pdserve.role_options import PROCESS_CLASSES
from pdserve.tracing import TracingConfig
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the file. ``cls`` may hold parts that are tables of their own."""

    name: str
    cls: type
    about: str

    def fields(self) -> tuple[OptionField, ...]:
        """The options whose home is this table."""
        return tuple(
            field
            for field in option_fields(self.cls)
            if not field.holder and field.option.table in ("", self.name)
        )

    def borrowed(self) -> tuple[OptionField, ...]:
        """Options of other tables that are read from this one too, and win there."""
        own = {field.name for field in self.fields()}
        return tuple(f for f in _all_fields(self) if f.name not in own)


CATALOGUE: tuple[Section, ...] = (
    Section("serve", ServeConfig, "`pdserve serve`: how many workers, where, how launched"),
    Section("router", RouterConfig, "the router"),
    Section("prefill", PrefillConfig, "prefill workers"),
    Section("decode", DecodeConfig, "decode workers"),
    Section(
        "engine",
        EngineConfig,
        "the engine of both worker roles; the router reads model, served_model_name, engine,"
        " dtype and weights here too",
    ),
    Section("transfer", TransferConfig, "KV transfer, both ends: prefill and decode workers"),
    Section("tracing", TracingConfig, "spans of requests, every role"),
    Section("process", ProcessConfig, "the process of every role"),
    Section("log", LogConfig, "log lines of every role"),
    Section("batch", BatchConfig, "`pdserve batch`, besides the options of `pdserve serve`"),
    Section("compare", CompareConfig, "`pdserve compare`, besides the options of `pdserve serve`"),
    Section("ray", RayConfig, "`pdserve serve --launcher ray`: the cluster, and places on it"),
    Section("cluster", ClusterConfig, "`pdserve cluster`"),
    Section("generate", GenerateConfig, "`pdserve generate`"),
    Section("status", StatusConfig, "`pdserve status`"),
    Section("trace", TraceCommandConfig, "`pdserve trace`"),
    Section("explain", ExplainConfig, "`pdserve explain`"),
    Section("model", ModelConfig, "`pdserve model`"),
    Section("doctor", DoctorConfig, "`pdserve doctor`, besides the options of `pdserve serve`"),
)


def check_file(sources: Sources) -> None:
    """Refuse unknown keys in every table of the file, not only in those that are read now.

    Raises:
        ConfigError: names the key, and the nearest known one or the table it belongs to.
    """
    refuse_unknown_keys(
        sources, {each.name: {field.name for field in _all_fields(each)} for each in CATALOGUE}
    )


def known_variables() -> frozenset[str]:
    """Every environment variable that means something to some command."""
    names = {ENVIRONMENT_PREFIX + "CONFIG", ENVIRONMENT_PREFIX + "CACHE"}
    for each in CATALOGUE:
        if each.name in ROLE_SECTIONS:
            for cls in (each.cls, *PROCESS_CLASSES):
                names |= environment_names(cls, each.name)
        elif each.name in COMMAND_SECTIONS:
            names |= environment_names(each.cls, each.name)
    return frozenset(names)


def role_variables() -> frozenset[str]:
    """Variables that are spoken for once a service's options are read: its children get flags."""
    return known_variables() - {ENVIRONMENT_PREFIX + "CACHE"}


def _all_fields(section: Section) -> Iterator[OptionField]:
    yield from option_fields(section.cls)
    if section.name in ROLE_SECTIONS:
        for cls in PROCESS_CLASSES:
            yield from option_fields(cls)
