"""cluster/deploy/slurm.sh with a fake Slurm and a fake Ray that write down how they were called.

The options of what it calls are then given to Ray's own parsers and to this project's. Not covered:
a real Slurm, and with it whether steps share CPUs and GPUs as asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.deploy_files import DEPLOY, commands_in, ray_start, served, submission
from support.source_tree import ROOT

SCRIPT = DEPLOY / "slurm.sh"
CONFIG = "cluster/examples/ray-4-nodes.toml"
LONGEST_S = 60

# Every fake writes its name and arguments as one line of calls.jsonl, then does what a line says.
_FAKE = """#!{python}
import json, os, pathlib, signal, sys
folder = pathlib.Path({folder!r})
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
if name == "scontrol":
    print("n1", "n2", "n3", sep="\\n")
elif name == "srun":
    command = words[[word.startswith("-") for word in words].index(False) :]
    os.execvp(command[0], command)
elif name == "hostname":
    print("10.0.0.1 fe80::1")
elif words[:1] == ["start"]:
    print("up", flush=True)
    signal.pause()
elif words[:2] == ["job", "list"]:
    asked = folder / "asked"
    if not asked.exists():  # the head is up when it is asked for the second time
        asked.touch()
        sys.exit(1)
elif words[:2] == ["job", "submit"]:
    (folder / "submit.pid").write_text(str(os.getpid()))
    token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    (folder / "token").write_text(oct(token.stat().st_mode) + " " + token.read_text())
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
    print("up", flush=True)
    signal.pause()
elif words[:2] == ["job", "stop"]:
    os.kill(int((folder / "submit.pid").read_text()), signal.SIGTERM)
"""


class Slurm:
    """A folder with the fakes in it, and the script running there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        binaries = folder / "venv" / "bin"
        binaries.mkdir(parents=True)
        for name in ("scontrol", "srun", "hostname", "ray"):
            fake = binaries / name
            fake.write_text(_FAKE.format(python=sys.executable, folder=str(folder)))
            fake.chmod(0o755)
        self.script = subprocess.Popen(
            [str(SCRIPT), CONFIG, "--decode-workers", "6"],
            env={
                "PATH": os.environ["PATH"],
                "PDSERVE_VENV": str(folder / "venv"),
                "SLURM_JOB_ID": "17",
                "SLURM_JOB_NODELIST": "n[1-3]",
                "SLURM_SUBMIT_DIR": str(folder),
                "SLURM_CPUS_PER_TASK": "8",
                "SLURM_GPUS_ON_NODE": "4",
            },
            stdout=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[list[str]]:
        lines = (self._folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def called(self, *first: str) -> list[list[str]]:
        return [call for call in self.calls() if tuple(call[: len(first)]) == first]

    def wait_until_up(self) -> None:
        """Three nodes and the submission."""
        assert self.script.stdout is not None
        assert [self.script.stdout.readline() for _ in range(4)] == ["up\n"] * 4

    def end_service(self) -> None:
        os.kill(int((self._folder / "submit.pid").read_text()), signal.SIGUSR1)

    @property
    def token(self) -> list[str]:
        """Its file's mode and its text, as the submission saw them."""
        return (self._folder / "token").read_text().split()

    def files_left(self) -> list[str]:
        return [path.name for path in self._folder.glob(".ray-token*")]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path)
    try:
        slurm.wait_until_up()
        yield slurm
    finally:
        slurm.script.kill()
        slurm.script.communicate()


def test_ray_is_started_on_every_node_and_the_service_is_submitted(running: Slurm) -> None:
    running.end_service()
    assert running.script.wait(LONGEST_S) == 0
    head, *others = [ray_start(call) for call in running.called("ray", "start")]
    assert head["head"]
    assert head["dashboard_host"] == head["node_ip_address"] == "10.0.0.1"
    assert [each["address"] for each in others] == [f"10.0.0.1:{head['port']}"] * 2
    for each in (head, *others):
        assert each["block"]
        assert (each["num_cpus"], each["num_gpus"]) == (8, 4)
    nodes = [
        next(word for word in call if word.startswith("--nodelist"))
        for call in running.called("srun")
        if "ray" in call
    ]
    assert sorted(nodes) == ["--nodelist=n1", "--nodelist=n2", "--nodelist=n3"]
    (call,) = running.called("ray", "job", "submit")
    asked = submission(call)
    assert asked["address"] == f"http://10.0.0.1:{head['dashboard_port']}"
    assert asked["submission_id"] == "pdserve-17"
    plan = served([str(ROOT / w) if w == CONFIG else w for w in asked["entrypoint"]])
    assert (plan.serve.launcher, plan.serve.prefill_workers) == ("ray", 8)
    assert plan.serve.decode_workers == 6
    mode, token = running.token
    assert mode.endswith("600")
    assert len(token) == 64
    assert running.files_left() == []


def test_a_stop_drains_the_service_before_ray_ends(running: Slurm) -> None:
    running.script.send_signal(signal.SIGTERM)
    assert running.script.wait(LONGEST_S) == 143
    (call,) = running.called("ray", "job", "stop")
    assert call[-1] == "pdserve-17"
    assert running.files_left() == []


def test_the_options_in_its_comments_are_those_of_sbatch_and_of_serve() -> None:
    commands = commands_in(SCRIPT.read_text(), "sbatch")
    assert len(commands) == 2
    for words in commands:
        script = words.index("cluster/deploy/slurm.sh")
        config, *options = words[script + 1 :]
        given = ["python", "-m", "cluster", "serve", "--launcher=ray", "--config"]
        plan: Any = served([*given, str(ROOT / config), *options])
        num_nodes = int(words[words.index("--nodes") + 1])
        gpus = num_nodes * int(words[words.index("--gpus-per-node") + 1])
        assert plan.serve.prefill_workers + plan.serve.decode_workers <= gpus


def test_without_a_file_it_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "usage: sbatch" in done.stderr
