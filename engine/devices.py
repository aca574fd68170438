"""What differs between a CPU and a CUDA device: names, free memory, waiting, copying beside a step.

    parse_device("cuda") -> cuda:0          checked against what is here
    wait_for_device(device)                 work of this thread has ended (nothing to do on a CPU)
    CopyStream(device), host_memory(n, device)   for staged_blocks.py

On a CPU an operation has ended when its call returns, so the same code runs there without waiting.
Not covered: other accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
