"""One child process: started, its log lines passed on, its ready line read, its end noticed.

A child is in a process group of its own (Ctrl-C in a terminal reaches the launcher only) and is
killed by the kernel when the launcher dies. Does not know what the child does or when it is to be
started again (supervisor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from cluster.ready import ReadyReport, decode_ready
from pdserve.errors import PdserveError, ProtocolError

Say = Callable[[str], None]

_NUM_TAIL_LINES = 20
_MAX_LINE_BYTES = 64 * 1024
_LAST_LINES_TIMEOUT_S = 1.0


class ChildFailed(PdserveError):
    """A child did not become ready. ``tail``: its last lines."""

    code = "child_failed"

    def __init__(self, name: str, problem: str, tail: Sequence[str]) -> None:
        super().__init__(f"{name} {problem}")
        self.tail = tuple(tail)


class Child:
    """Made by ``start``; ends with ``wait`` or ``kill``."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, ready_fd: int, say: Say
    ) -> None:
        self.name = name
        self._process = process
        self._ready_fd = ready_fd
        self._say = say
        self._tail: deque[str] = deque(maxlen=_NUM_TAIL_LINES)
        self._lines = asyncio.create_task(self._pass_lines_on(), name=f"lines of {name}")

    @classmethod
    async def start(
        cls, name: str, argv: Sequence[str], *, env: Mapping[str, str], say: Say
    ) -> Child:
        """``say`` gets every line the child writes, its name before it."""
        read_fd, write_fd = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                f"--ready-fd={write_fd}",
                f"--parent-pid={os.getpid()}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(write_fd,),
                env=env,
                process_group=0,
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        return cls(name, process, read_fd, say)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self, timeout_s: float) -> ReadyReport:
        """Called once.

        Raises:
            ChildFailed: it ended, or was not ready in time (it is killed then).
        """
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._read_ready_line()
        except TimeoutError:
            await self.kill()
            raise self._failed(f"was not ready within {timeout_s:g} s") from None
        if not line:
            status = await self.wait()
            raise self._failed(f"ended at start with {describe_status(status)}")
        try:
            return decode_ready(line)
        except ProtocolError as error:
            await self.kill()
            raise self._failed(f"sent no usable ready line: {error}") from error

    async def wait(self) -> int:
        """The exit status, once the process has ended and its last lines are passed on."""
        status = await self._process.wait()
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1
        # A grandchild may hold the pipe open: do not wait for it for ever.
        await asyncio.wait({self._lines}, timeout=_LAST_LINES_TIMEOUT_S)
        self._lines.cancel()
        return status

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        """End it and whatever it has started, at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()

    async def _read_ready_line(self) -> bytes:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        pipe = os.fdopen(self._ready_fd, "rb", 0)
        self._ready_fd = -1
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            return await reader.readline()
        finally:
            transport.close()

    async def _pass_lines_on(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(_MAX_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE_BYTES:
                lines.append(rest)
                rest = b""
            for line in lines:
                self._pass_on(line)
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip()
        self._tail.append(text)
        # A JSON line names its worker itself, and must stay JSON.
        self._say(text if text.startswith("{") else f"[{self.name}] {text}")

    def _failed(self, problem: str) -> ChildFailed:
        return ChildFailed(self.name, problem, self._tail)


def describe_status(status: int) -> str:
    """ "status 1" or "signal SIGKILL"."""
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"status {status}"
