"""A peer as a process that answers questions (benchmarks/peers/turns.py), stopped between them.

Stopped with SIGSTOP while others have their turn: threads of OpenMP spin on after a call, and would
be measured with the next one's. Knows nothing of what is asked.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

ANSWER_DEADLINE_S = 300.0


class Contestant:
    """``name`` is what it calls itself. ``close`` ends the process.

    Raises:
        SystemExit: it did not start, ended or said nothing in time; shows what it wrote last.
    """

    def __init__(
        self, kind: str, python: str, module: str, settings: dict[str, Any], log: Path
    ) -> None:
        self.kind = kind
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        self._answers = b""
        self.name = str(self._answer()["ready"])
        self._signal(signal.SIGSTOP)
        self.wait_until_stopped()

    def ask(self, kind: str, **parts: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps({"kind": kind, **parts}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        self.wait_until_stopped()
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_stopped(self) -> None:
        """Until the signal sent after the last answer has had its effect."""
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._answers:
            ready, _, _ = select.select([descriptor], [], [], ANSWER_DEADLINE_S)
            part = os.read(descriptor, 65536) if ready else b""
            if not part:
                self.close()
                said = self._log.read_text(errors="replace").strip().splitlines()[-8:]
                raise SystemExit("\n".join([f"{self.kind} gave no answer ({self._log})", *said]))
            self._answers += part
        line, _, self._answers = self._answers.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
