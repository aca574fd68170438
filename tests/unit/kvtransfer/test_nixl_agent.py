"""Our use of NIXL's calls, over a stand-in for the package: states, errors, what is released."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvtransfer.transports.nixl_agent import DRAM, Memory, NixlAgent, Span
from pdserve.errors import ConfigError, PeerUnreachable
from support.kv_pair import settle, until

SPANS = [Span(1, 2, 3)]


class GoneError(Exception):
    """As the package's are: derived from Exception alone."""


class Handle:
    def __init__(self) -> None:
        self.num_released = 0

    def release(self) -> None:
        self.num_released += 1


class Library(ModuleType):
    """What of ``nixl`` is used. ``states``: of a read, one a question; the first when posted."""

    def __init__(self, *states: str | Exception, backends: tuple[str, ...] = ("UCX",)) -> None:
        super().__init__("nixl")
        self.states = list(states)
        self.usable = backends
        self.handles: list[Handle] = []
        self.refused: Exception | None = None
        self.progress = SimpleNamespace()
        self._bindings = SimpleNamespace(
            GoneError=GoneError, nixlAgentConfig=lambda: self.progress, nixlAgent=self._below
        )

    def _below(self, name: str, config: SimpleNamespace) -> None:
        """With its own thread, which pauses: one that does not takes a core from the engine."""
        assert config.useProgThread
        assert config.pthrDelay > 0

    def nixl_agent_config(self, progress: bool, *, backends: list[str]) -> None:
        assert not progress
        assert not backends

    def create_backend(self, name: str) -> None:
        if name not in self.usable:
            raise GoneError("no such backend")

    def nixl_agent(self, name: str, config: None) -> Library:
        if self.refused is not None:
            raise self.refused
        return self

    def next_state(self) -> str:
        state = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state

    def register_memory(self, regions: list[Any], kind: str) -> None:
        self.next_state()

    def add_remote_agent(self, metadata: bytes) -> bytes:
        self.next_state()
        return metadata

    def remove_remote_agent(self, name: str) -> None:
        self.next_state()

    def get_xfer_descs(self, spans: list[Any], kind: str) -> list[Any]:
        return spans

    def initialize_xfer(self, *request: Any) -> Handle:
        self.handles.append(Handle())
        return self.handles[-1]

    def transfer(self, handle: Handle) -> str:
        return self.next_state()

    def check_xfer_state(self, handle: Handle) -> str:
        return self.next_state()


def agent_over(monkeypatch: pytest.MonkeyPatch, library: Library | None) -> NixlAgent:
    monkeypatch.setitem(sys.modules, "nixl", library)
    return NixlAgent()


@pytest.mark.parametrize("states", [["DONE"], ["PROC", "DONE"], ["PROC", "PROC", "PROC", "DONE"]])
async def test_a_read_ends_when_nixl_says_so(
    states: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(*states)
    agent = agent_over(monkeypatch, library)
    await agent.read("far", DRAM, 0, SPANS)
    assert agent.num_reads == 0
    assert [handle.num_released for handle in library.handles] == [1]
    await agent.close()


@pytest.mark.parametrize(
    "states", [["ERR"], ["PROC", "ERR"], [GoneError("gone")], ["PROC", GoneError("gone")]]
)
async def test_a_failed_read_is_an_error_of_ours(
    states: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(*states)
    agent = agent_over(monkeypatch, library)
    with pytest.raises(PeerUnreachable, match="nixl"):
        await agent.read("far", DRAM, 0, SPANS)
    assert agent.num_reads == 0
    await agent.close()


async def test_a_read_that_never_ends_is_over_when_the_agent_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = agent_over(monkeypatch, Library("PROC"))
    reading = asyncio.create_task(agent.read("far", DRAM, 0, SPANS))
    await until(lambda: agent.num_reads == 1)
    await agent.close()
    with pytest.raises(PeerUnreachable, match="closed"):
        await reading
    with pytest.raises(PeerUnreachable, match="closed"):
        await agent.read("far", DRAM, 0, SPANS)
    await agent.remove("far")
    await settle()


async def test_what_nixl_refuses_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_over(monkeypatch, Library(GoneError("no")))
    with pytest.raises(PeerUnreachable, match="no"):
        await agent.add(b"far")
    with pytest.raises(ConfigError, match="cannot register"):
        await agent.register(Memory(0, 1))
    await agent.remove("far")  # it may be gone already
    await agent.close()


@pytest.mark.parametrize("error", [GoneError("broken"), RuntimeError("broken")])
def test_no_agent_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    library.refused = error
    with pytest.raises(ConfigError, match="no agent over UCX: broken"):
        agent_over(monkeypatch, library)


def test_a_missing_package_or_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="KV transport nixl"):
        agent_over(monkeypatch, None)
    with pytest.raises(ConfigError, match="no agent over UCX: no such backend"):
        agent_over(monkeypatch, Library(backends=()))
