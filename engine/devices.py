"""What differs between a CPU and a CUDA device: names, memory, waiting, copying, recording.

    parse_device("cuda") -> cuda:0          checked against what is here
    wait_for_device(device)                 work of this thread has ended (nothing to do on a CPU)
    CopyStream(device), host_memory(n, device)   for staged_blocks.py
    open_recorder(device)                   for decode_graphs.py; None on a CPU

On a CPU an operation has ended when its call returns, so the same code runs there without waiting.
The rest of the engine asks here and names no device: tests/architecture/test_device_branches.py
lists every place that does. Not covered: other accelerators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from pdserve.errors import ConfigError


def parse_device(text: str) -> torch.device:
    """The device of the option ``device``; "cuda" is the first one.

    Raises:
        ConfigError: not a device's name, or no such device here.
    """
    kind, colon, index = text.partition(":")
    if text == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise ConfigError(f"device: {text!r} is none of 'cpu', 'cuda' and 'cuda:N'")
    if int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {text!r} is not here: {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(index or 0))


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that nobody, this process included, has taken."""
    free, _ = torch.cuda.mem_get_info(device)
    return free


def wait_for_device(device: torch.device) -> None:
    """Return once the work that the calling thread started on its current stream has ended.

    Raises:
        RuntimeError: that work failed (torch's own error).
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class CopyStream:
    """A stream of its own, so that copies neither wait for the running step nor hold it up."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Copies started inside by this thread have ended on leaving, by an error too."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()


def host_memory(num_bytes: int, device: torch.device) -> memoryview:
    """Writable host memory: page-locked for a CUDA device, from torch's cache of such memory."""
    if device.type != "cuda":
        return memoryview(bytearray(num_bytes))
    with torch.cuda.device(device):  # page-locking makes a context: on this device, no other
        locked = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    return locked.numpy().data


def enter_device(device: torch.device) -> None:
    """Make it the calling thread's own: kernels that are not torch's start on the current one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def has_paged_kernels(device: torch.device) -> bool:
    """Whether the kernels of attention_choice.py that follow block tables can run there."""
    return device.type == "cuda"


class Recording(Protocol):
    """Work that was recorded. ``repeat`` does it again and gives the same tensor, with new values;
    where other work was recorded by the same recorder, valid until any of it is repeated."""

    def repeat(self) -> torch.Tensor: ...


class Recorder(Protocol):
    """``record`` does the work at least once. The work must start nothing that waits for the
    device, and every address it reads and writes must stay."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recording: ...


def open_recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """CUDA graphs over one memory pool: their intermediate values share it."""

    WARM_UPS = 2  # runs before the recording, in which libraries choose kernels and allocate

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may page-lock memory meanwhile (host_memory); only this one is watched.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return _CudaRecording(graph, result)


class _CudaRecording:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: torch.Tensor) -> None:
        self._graph = graph
        self._result = result

    def repeat(self) -> torch.Tensor:
        self._graph.replay()
        return self._result
