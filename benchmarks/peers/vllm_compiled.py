"""vLLM's CPU build through torch.compile: vllm_cpu.py, not eager. Needs a C++ compiler at start.

Its first start compiles for minutes; vLLM keeps what it compiled in its own cache.
"""

from __future__ import annotations

from functools import partial

from benchmarks.peers.turns import serve
from benchmarks.peers.vllm_cpu import Vllm

if __name__ == "__main__":
    serve(partial(Vllm, is_compiled=True))
