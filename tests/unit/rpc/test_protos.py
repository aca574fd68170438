"""Style of the protos, by their descriptors: names, zeros, own messages, and a comment on each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

pytest.importorskip("grpc_tools", reason="needs the generator of the dev extra")

ROOT = Path(__file__).parents[3]
FILES = sorted(path.relative_to(ROOT / "proto") for path in (ROOT / "proto").rglob("*.proto"))

# Numbers of the fields of the descriptor messages: what source locations are made of.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _VALUE, _METHOD = 2, 2, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    output = tmp_path_factory.mktemp("protos") / "set"
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=proto"]
    options = ["--include_source_info", f"--descriptor_set_out={output}"]
    subprocess.run([*command, *options, *map(str, FILES)], cwd=ROOT, check=True)
    return list(FileDescriptorSet.FromString(output.read_bytes()).file)


def _enums(file: FileDescriptorProto) -> Iterator[EnumDescriptorProto]:
    yield from file.enum_type
    for message in file.message_type:
        yield from message.enum_type


def test_folder_and_package_agree(files: list[FileDescriptorProto]) -> None:
    assert len(files) == len(FILES) == 4
    for file in files:
        assert Path(file.name).parent.as_posix() == file.package.replace(".", "/")
        assert file.syntax == "proto3"


def test_enums_begin_with_unspecified_and_carry_their_name(
    files: list[FileDescriptorProto],
) -> None:
    for file in files:
        for enum in _enums(file):
            prefix = _upper_snake(enum.name)
            assert enum.value[0].name == f"{prefix}_UNSPECIFIED"
            assert enum.value[0].number == 0
            assert all(value.name.startswith(f"{prefix}_") for value in enum.value)


def test_services_are_named_so_and_messages_belong_to_one_method(
    files: list[FileDescriptorProto],
) -> None:
    used: list[str] = []
    for file in files:
        for service in file.service:
            assert service.name.endswith("Service")
            assert Path(file.name).stem == _upper_snake(service.name).lower()
            for method in service.method:
                used += [method.input_type, method.output_type]
    assert len(used) == len(set(used)) == 16


def test_everything_is_commented(files: list[FileDescriptorProto]) -> None:
    for file in files:
        commented = {
            tuple(location.path)
            for location in file.source_code_info.location
            if location.leading_comments.strip()
        }
        bare = [name for name, path in _all_parts(file) if path not in commented]
        assert bare == [], file.name


def test_durations_carry_their_unit(files: list[FileDescriptorProto]) -> None:
    """Every floating number that is a time ends in _s; nothing is a clock reading."""
    for file in files:
        for message in file.message_type:
            for field in message.field:
                assert not field.name.endswith(("_at", "_ms", "_time", "timestamp")), field.name
                if "time" in field.name and field.type == field.TYPE_DOUBLE:
                    assert field.name.endswith("_s"), field.name


def _all_parts(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index, message in enumerate(file.message_type):
        yield from _message_parts(message, (_MESSAGE, index))
    for index, enum in enumerate(file.enum_type):
        yield enum.name, (_ENUM, index)
        for number, value in enumerate(enum.value):
            yield value.name, (_ENUM, index, _VALUE, number)
    for index, service in enumerate(file.service):
        yield service.name, (_SERVICE, index)
        for number, method in enumerate(service.method):
            yield method.name, (_SERVICE, index, _METHOD, number)


def _message_parts(
    message: DescriptorProto, path: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield message.name, path
    for number, field in enumerate(message.field):
        yield f"{message.name}.{field.name}", (*path, _FIELD, number)


def _upper_snake(name: str) -> str:
    parts = "".join(f"_{char}" if char.isupper() else char for char in name)
    return parts.strip("_").upper()
