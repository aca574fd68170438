"""One NIXL agent: memory registered with it, agents it knows, reads out of their memory.

The agent is used by a thread of its own and by no other: a call may block (UCX copies within the
call that posts a read, where it can), and NIXL's agents are not to be used by two threads at once.
That a read has ended cannot be waited for, NIXL has neither a descriptor nor a callback for it: its
state is asked for by a timer that runs while reads are under way.

Knows neither messages, blocks nor leases. Not covered: writes, notifications, other backends than
UCX, memory on a GPU that was ever seen to work (it is described as NIXL wants it).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pdserve.errors import ConfigError, PeerUnreachable
from pdserve.log import event_log, taken_over

BACKEND = "UCX"
DRAM, VRAM = "DRAM", "VRAM"
PROGRESS_PAUSE_US = 1000  # of NIXL's thread, without events; connecting takes as long with 100 ms
LEAST_POLL_S, MOST_POLL_S = 0.0002, 0.02

T = TypeVar("T")

_log = event_log(__name__)


@dataclass(frozen=True, slots=True)
class Memory:
    """``num_bytes`` from ``address`` on: of the host (DRAM), or of GPU number ``device`` (VRAM)."""

    address: int
    num_bytes: int
    kind: str = DRAM
    device: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes to be read: from ``theirs``, an address of the far agent, to ``mine``."""

    theirs: int
    mine: int
    num_bytes: int


class NixlAgent:
    """Used from one event loop; ``close`` ends its thread and every read."""

    def __init__(self) -> None:
        """Raises ConfigError: the package or its UCX backend cannot be used here."""
        self._thread = ThreadPoolExecutor(1, "pdserve-nixl")
        try:
            self._calls = self._thread.submit(_Calls).result()
        except ConfigError:
            self._thread.shutdown()
            raise
        self._waiting: dict[int, tuple[Any, asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Future[Mapping[int, str]] | None = None
        self._poll_s = LEAST_POLL_S
        self._closed = False

    @property
    def num_reads(self) -> int:
        """That NIXL has not ended."""
        return len(self._waiting)

    async def register(self, memory: Memory) -> None:
        """Let far agents read it, or own reads write it, until ``close``. Raises ConfigError."""
        try:
            await self._call(lambda: self._calls.register(memory))
        except self._calls.failures as error:
            raise ConfigError(f"KV transport nixl: cannot register {memory}: {error}") from error

    async def metadata(self) -> bytes:
        """What another agent must know of this one to read its memory."""
        return await self._call(self._calls.metadata)

    async def add(self, metadata: bytes) -> str:
        """Know a far agent by its name. Raises PeerUnreachable: it cannot be read from here."""
        return await self._translated(lambda: self._calls.add(metadata))

    async def remove(self, name: str) -> None:
        """Forget it. It may have gone already."""
        if not self._closed:
            await self._call(lambda: self._calls.remove(name))

    async def read(self, name: str, kind: str, device: int, spans: Sequence[Span]) -> None:
        """Return when all bytes are here.

        A caller that is cancelled does not end the read: NIXL may go on writing, and even a
        request that was released does so over UCX. Run it as a task, and wait for its end.

        Raises PeerUnreachable: the read failed and writes no more, or the agent was closed.
        """
        handle = await self._translated(lambda: self._calls.post(name, kind, device, spans))
        if handle is None:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[id(handle)] = (handle, ended)
        self._poll_s = LEAST_POLL_S
        self._look_soon()
        await ended

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for _, ended in self._waiting.values():
            if not ended.done():
                ended.set_exception(PeerUnreachable("nixl: closed"))
        self._waiting.clear()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._calls.close)
        self._thread.shutdown()

    # --- asking for the state of reads ----------------------------------------------------------

    def _look_soon(self) -> None:
        idle = self._timer is None and self._looking is None
        if idle and self._waiting and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._poll_s, self._look)
            self._poll_s = min(2 * self._poll_s, MOST_POLL_S)

    def _look(self) -> None:
        self._timer = None
        handles = {number: handle for number, (handle, _) in self._waiting.items()}
        loop = asyncio.get_running_loop()
        self._looking = loop.run_in_executor(self._thread, self._calls.ended, handles)
        self._looking.add_done_callback(self._note_ended)

    def _note_ended(self, looking: asyncio.Future[Mapping[int, str]]) -> None:
        self._looking = None
        for number, failure in looking.result().items():
            _, ended = self._waiting.pop(number, (None, None))
            if ended is None or ended.done():
                continue
            if failure:
                ended.set_exception(PeerUnreachable(f"nixl: the read failed: {failure}"))
            else:
                ended.set_result(None)
        self._look_soon()

    async def _translated(self, call: Callable[[], T]) -> T:
        try:
            return await self._call(call)
        except self._calls.failures as error:
            raise PeerUnreachable(f"nixl: {error}") from error

    async def _call(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise PeerUnreachable("nixl: closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


class _Calls:
    """NIXL's own calls, all made by the agent's thread. The one place that knows its errors."""

    def __init__(self) -> None:
        library = _library()
        self.failures: tuple[type[Exception], ...] = _failures(library)
        unusable: tuple[type[Exception], ...] = (*self.failures, RuntimeError)  # no plugins at all
        name = f"pdserve-{secrets.token_hex(8)}"
        try:
            self._agent = library.nixl_agent(name, library.nixl_agent_config(False, backends=[]))
            # NIXL's class has its progress thread never pause: it spins, and takes a core from the
            # engine. So the agent below it is made here, which is not documented.
            below = library._bindings.nixlAgentConfig()
            below.useProgThread, below.pthrDelay = True, PROGRESS_PAUSE_US
            self._agent.agent = library._bindings.nixlAgent(name, below)
            self._agent.create_backend(BACKEND)
        except unusable as error:
            raise ConfigError(f"KV transport nixl: no agent over {BACKEND}: {error}") from error

    def register(self, memory: Memory) -> None:
        region = (memory.address, memory.num_bytes, memory.device, "")
        self._agent.register_memory([region], memory.kind)

    def metadata(self) -> bytes:
        return bytes(self._agent.get_agent_metadata())

    def add(self, metadata: bytes) -> str:
        name = self._agent.add_remote_agent(metadata)
        return name.decode() if isinstance(name, bytes) else str(name)

    def remove(self, name: str) -> None:
        try:
            self._agent.remove_remote_agent(name)
        except self.failures as error:
            _log.info("kv_nixl_agent_gone", agent=name, error=error)

    def post(self, name: str, kind: str, device: int, spans: Sequence[Span]) -> Any:
        """The request, or None if it has ended within the call."""
        agent = self._agent
        mine = agent.get_xfer_descs([(each.mine, each.num_bytes, 0) for each in spans], DRAM)
        theirs = [(each.theirs, each.num_bytes, device) for each in spans]
        handle = agent.initialize_xfer(
            "READ", mine, agent.get_xfer_descs(theirs, kind), name, b"", [BACKEND]
        )
        state = agent.transfer(handle)
        if state == "PROC":
            return handle
        handle.release()
        if state != "DONE":
            raise PeerUnreachable("nixl: the read could not be posted")
        return None

    def ended(self, handles: Mapping[int, Any]) -> Mapping[int, str]:
        """Of those that have ended: what went wrong, or "". Their requests are released."""
        found: dict[int, str] = {}
        for number, handle in handles.items():
            try:
                state = self._agent.check_xfer_state(handle)
                failure = "" if state == "DONE" else state
            except self.failures as error:
                state, failure = "ERR", str(error)
            if state != "PROC":
                handle.release()
                found[number] = failure
        return found

    def close(self) -> None:
        """The last reference: its destructor ends NIXL's own thread and every request."""
        del self._agent


def _library() -> Any:
    """Raises ConfigError."""
    try:
        with taken_over("nixl"):  # it says on standard output what it does
            import nixl
    except ImportError as error:
        raise ConfigError(f"KV transport nixl: {error}").advise(
            "pip install 'pdserve[nixl]', or leave nixl out of --kv-transports"
        ) from error
    return nixl


def _failures(library: Any) -> tuple[type[Exception], ...]:
    """NIXL's errors have no common class of their own."""
    return tuple(
        each
        for each in vars(library._bindings).values()
        if isinstance(each, type) and issubclass(each, Exception)
    )
