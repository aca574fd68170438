"""The examples in other languages name what the protos have, and compile where a compiler is.

Names are compared with the descriptors everywhere. Compiling needs the language's own tools: go
with protoc-gen-go and protoc-gen-go-grpc, or ``npm install`` in docs/examples/typescript
(docs/clients.md); without them that test is skipped by name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdserve.v1 import inference_service_pb2 as pb

ROOT = Path(__file__).parents[3]
GO = ROOT / "docs" / "examples" / "go" / "main.go"
TYPESCRIPT = ROOT / "docs" / "examples" / "typescript"
PROTOS = sorted(str(path) for path in (ROOT / "proto" / "pdserve" / "v1").glob("*.proto"))
DEBIAN_GO_SOURCES = "/usr/share/gocode"


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def test_the_go_example_names_what_go_will_have() -> None:
    known = {"NewInferenceServiceClient"}
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        known.add(name)
        known |= {f"{name}_{_camel(f.name)}" for f in message.fields if f.containing_oneof}
    source = GO.read_text(encoding="utf-8")
    used = set(re.findall(r"\bpb\.(\w+)", source))
    assert used <= known
    assert used >= {"NewInferenceServiceClient", "GenerateRequest", "GenerateResponse"}
    fields = {_camel(field) for field in pb.SamplingOptions.DESCRIPTOR.fields_by_name}
    assert set(re.findall(r"SamplingOptions\{(\w+):", source)) <= fields


def test_the_typescript_example_names_what_typescript_will_have() -> None:
    source = (TYPESCRIPT / "generate.ts").read_text(encoding="utf-8")
    assert 'from "./gen/pdserve/v1/inference_service_pb.js"' in source
    assert "{ InferenceService }" in source
    options = pb.SamplingOptions.DESCRIPTOR.fields
    assert set(re.findall(r"sampling: \{ (\w+):", source)) <= {each.json_name for each in options}
    oneof = pb.GenerateRequest.DESCRIPTOR.oneofs_by_name["prompt"]
    assert set(re.findall(r'case: "(\w+)"', source)) <= {each.json_name for each in oneof.fields}
    told = {each.json_name for each in pb.GenerateResponse.DESCRIPTOR.fields}
    assert set(re.findall(r"piece\.(\w+)", source)) <= told


def test_the_go_example_compiles(tmp_path: Path) -> None:
    for tool in ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if not Path(DEBIAN_GO_SOURCES, "src", "google.golang.org", "grpc").is_dir():
        pytest.skip("the package golang-google-grpc-dev is not installed")
    sources = tmp_path / "src"
    (sources / "example").mkdir(parents=True)
    shutil.copy(GO, sources / "example")
    subprocess.run(
        [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"--go_out={sources}",
            f"--go-grpc_out={sources}",
            *PROTOS,
        ],
        check=True,
    )
    environment = {**os.environ, "GO111MODULE": "off", "GOFLAGS": "",
                   "GOPATH": f"{tmp_path}:{DEBIAN_GO_SOURCES}"}  # fmt: skip
    subprocess.run(["go", "vet", "."], cwd=sources / "example", env=environment, check=True)


def test_the_typescript_example_compiles(tmp_path: Path) -> None:
    modules = TYPESCRIPT / "node_modules"
    if not modules.is_dir():
        pytest.skip("docs/examples/typescript has no node_modules: run npm install there")
    shutil.copy(TYPESCRIPT / "generate.ts", tmp_path)
    shutil.copy(TYPESCRIPT / "package.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "gen").mkdir()
    generator = modules / ".bin" / "protoc-gen-es"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
         f"--plugin=protoc-gen-es={generator}", "--es_opt=target=ts,import_extension=js",
         f"--es_out={tmp_path / 'gen'}", *PROTOS],
        check=True,
    )  # fmt: skip
    subprocess.run(["npm", "run", "-s", "check"], cwd=tmp_path, check=True)
