"""How many threads torch uses in the calling thread, for a stretch of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(is_wanted: bool = True) -> Iterator[None]:
    """Compute with a single thread inside, if wanted."""
    num_threads = torch.get_num_threads()
    if not is_wanted or num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
