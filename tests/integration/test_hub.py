"""A model by its hub id: fetched from a hub on loopback, from the cache, and what is told when not.

In processes of their own: the library reads its settings when it is imported.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pdserve.prepared import read_prepared
from support.small_hub import REPO, SmallHub
from support.tiny_gguf import write_tiny_gguf
from support.tiny_llama import write_tiny_llama

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[SmallHub]:
    folder = write_tiny_llama(tmp_path / "repository", num_shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"the same again, in another layout")
    write_tiny_gguf(folder / "tiny-Q8_0", weight_type="Q8_0", num_parts=2)
    hub = SmallHub(folder)
    yield hub
    hub.close()


@pytest.fixture
def prepare(tmp_path: Path, hub: SmallHub) -> Prepare:
    """``pdserve model prepare`` with an empty cache of its own."""

    def run(model: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "PDSERVE_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        command = [sys.executable, "-m", "cluster", "model", "prepare", model]
        return subprocess.run(
            command, env={**kept, **settings, **environment}, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip

    return run


def test_fetched_once_and_served_from_the_cache(hub: SmallHub, prepare: Prepare) -> None:
    with hub.running():
        first = prepare(REPO)
        assert first.returncode == 0, first.stderr
        prepared = read_prepared(Path(first.stdout.strip()))
        assert prepared.name == REPO
        fetched = {path.rsplit("/", 1)[1] for path in hub.requests if "GET" in path}
        assert "model-00002-of-00002.safetensors" in fetched
        assert not fetched & {"consolidated.safetensors", "tiny-Q8_0-00001-of-00002.gguf"}
        hub.requests.clear()
        again = prepare(REPO)
        assert (again.returncode, again.stdout) == (0, first.stdout)
        assert not [path for path in hub.requests if "GET" in path and "/resolve/" in path]
    offline = prepare(REPO, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)
    gone = prepare(REPO)  # nobody listens there any more
    assert (gone.returncode, gone.stdout) == (0, first.stdout)


def test_a_gguf_file_in_parts(hub: SmallHub, prepare: Prepare) -> None:
    with hub.running():
        done = prepare(f"{REPO}/tiny-Q8_0-00002-of-00002.gguf")
    assert done.returncode == 0, done.stderr
    assert read_prepared(Path(done.stdout.strip())).name == "tiny-Q8_0"


def test_what_is_not_there(hub: SmallHub, prepare: Prepare) -> None:
    with hub.running():
        nobody = prepare("nobody/nothing")
        assert nobody.returncode != 0
        assert "model 'nobody/nothing' on the hub: not there, or private" in nobody.stderr
        revision = prepare(f"{REPO}@nowhere")
        assert f"model '{REPO}' on the hub: no revision 'nowhere'" in revision.stderr
        file = prepare(f"{REPO}/other.gguf")
        assert "no other.gguf in it" in file.stderr
        hub.gated = True
        assert "then set HF_TOKEN" in prepare(REPO).stderr


def test_no_network(prepare: Prepare) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nobody listens
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for settings in ({"HF_ENDPOINT": endpoint}, {"HF_HUB_OFFLINE": "1"}):
            failed = prepare("someone/elsewhere", **settings)
            assert failed.returncode != 0
            assert "neither reached nor whole in the cache" in failed.stderr
            assert "give a folder or a .gguf file" in failed.stderr
            assert "Traceback" not in failed.stderr
