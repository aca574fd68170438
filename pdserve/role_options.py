"""The options of one role's process: the role's own, those of the process and those of the log.

    options = read_role("decode", DecodeConfig, role_parser("pdserve decode", ...).parse(argv))

Does not know which roles there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from pdserve.app import ProcessConfig
from pdserve.config import Sources, build_config
from pdserve.flags import FlagParser
from pdserve.log import LogConfig

ConfigT = TypeVar("ConfigT")

PROCESS_CLASSES: tuple[type, ...] = (ProcessConfig, LogConfig)  # every role's process has them


@dataclass(frozen=True, slots=True)
class RoleOptions(Generic[ConfigT]):
    config: ConfigT
    process: ProcessConfig
    log: LogConfig


def role_parser(prog: str, about: str, role: str, cls: type) -> FlagParser:
    """Flags of a process of ``role``, whose own options are ``cls``."""
    parser = FlagParser(prog, about)
    parser.add_options(role, cls)
    parser.add_options("process", ProcessConfig)
    parser.add_options("log", LogConfig)
    return parser


def read_role(role: str, cls: type[ConfigT], sources: Sources) -> RoleOptions[ConfigT]:
    """Raises ConfigError: a value or a key of the role's tables is unusable."""
    beside = (cls, *PROCESS_CLASSES)
    return RoleOptions(
        config=build_config(cls, role, sources, beside=beside),
        process=build_config(ProcessConfig, role, sources, beside=beside),
        log=build_config(LogConfig, role, sources, beside=beside),
    )
