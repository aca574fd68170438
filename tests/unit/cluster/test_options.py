"""Every option of every role is explained, and no two of them collide on a command line."""

from __future__ import annotations

import re

import pytest

from cluster.batch.config import BatchConfig
from cluster.config import ServeConfig
from cluster.plan import service_parser
from decode_worker.config import DecodeConfig
from engine.config import EngineConfig
from kvtransfer.config import TransferConfig
from pdserve.app import ProcessConfig
from pdserve.config import SECTIONS, OptionField, option_fields
from pdserve.log import LogConfig
from pdserve.tracing import TracingConfig
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

CLASSES = (
    ServeConfig, BatchConfig, RouterConfig, PrefillConfig, DecodeConfig, EngineConfig,
    TransferConfig, TracingConfig, ProcessConfig, LogConfig,
)  # fmt: skip

# A name that ends like this is a physical amount, and its help must say so.
UNIT_OF_SUFFIX = {
    "_s": "s",
    "_ms": "ms",
    "_us": "µs",
    "_mib": "MiB",
    "_bytes": "bytes",
    "_tokens": "tokens",
}
# Numbers that are plain counts or names of something.
WITHOUT_UNIT = re.compile(r"threads|.*port|.*_fd|.*_pid|max_redispatches")

FIELDS = [(cls, field) for cls in CLASSES for field in option_fields(cls)]


@pytest.mark.parametrize(
    ("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field.name}" for cls, field in FIELDS]
)
def test_every_option_is_explained(cls: type, field: OptionField) -> None:
    assert len(field.option.help) >= 8
    assert not field.option.help.endswith(".")
    is_number = field.kind in (int, float)
    for suffix, unit in UNIT_OF_SUFFIX.items():
        if field.name.endswith(suffix) and is_number:
            assert field.option.unit == unit
    if is_number and not WITHOUT_UNIT.fullmatch(field.name):
        assert field.option.unit, "a number needs a unit"
        assert field.option.low is not None, "a number needs a lower bound"


@pytest.mark.parametrize("cls", CLASSES)
def test_tables_of_the_file_are_known(cls: type) -> None:
    assert {field.table for field in option_fields(cls)} <= {"", *SECTIONS}


def test_one_command_line_holds_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service_parser("pdserve serve", "about").parse(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--model", "--prefill-workers", "--decode-workers", "--http-port", "--grpc-port", "--mode",
        "--dtype", "--device", "--devices", "--threads", "--cpus", "--block-size", "--kv-memory",
        "--max-model-len", "--chunk-tokens", "--served-model-name", "--engine", "--launcher",
        "--prefill-threads", "--decode-threads", "--prefill-cpus", "--decode-cpus",
        "--prefill-devices", "--decode-devices",
    ):  # fmt: skip
        assert re.search(rf"{flag}\b(?!-)", text), flag


def test_prefixed_names_of_roles_are_not_shared_names() -> None:
    """--prefill-x must mean x of the prefill workers and nothing else."""
    shared = {f.name for cls in CLASSES for f in option_fields(cls)}
    for prefix, cls in (("prefill_", PrefillConfig), ("decode_", DecodeConfig)):
        assert not {prefix + field.name for field in option_fields(cls)} & shared
