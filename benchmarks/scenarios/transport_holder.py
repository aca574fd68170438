"""The holder's process of the transport scenario: KV of SmolLM2's shape, ready to be read.

    python -m benchmarks.scenarios.transport_holder ARGUMENTS: in order
        DTYPE BLOCK_SIZE TOKENS ROUNDS FRAME_BYTES LOOP TRANSPORTS

Prints one line of JSON with its addresses and ends when its standard input does. Serves the same
memory to KV reads (by each transport, one ticket a round and transport) and on a raw socket (a
thread of its own).
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import threading

import uvloop

from kvtransfer.config import TransferConfig
from kvtransfer.exporter import Exporter
from kvtransfer.messages import FirstTokenInfo
from pdserve.clock import MonotonicClock
from pdserve.memory_file import MemoryFile
from pdserve.types import Endpoint, KVLayout, TicketId, TransferTicket, WorkerId
from prefill_worker.config import PrefillConfig
from prefill_worker.listeners import own_listeners

_SEND_BYTES = 4 << 20


class FilledBuffers:
    """Blocks in one piece of memory, every page touched. Satisfies BlockBuffers."""

    device = "cpu"
    copier = None

    def __init__(self, layout: KVLayout, num_blocks: int, seed: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        page = random.Random(seed).randbytes(4096)
        num_bytes = num_blocks * layout.block_bytes
        self._file = MemoryFile(num_bytes, "pdserve-kv-benchmark")
        self.memory_fd = self._file.fd
        self.memory = self._file.view
        self.memory[:] = (page * -(-num_bytes // 4096))[:num_bytes]

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        return self.memory[block_id * size : (block_id + 1) * size]


class WholeMemory:
    """A lease of every block, over and over. Satisfies Lease."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_cached = 0

    @property
    def block_ids(self) -> tuple[int, ...]:
        return tuple(range(self.num_blocks))

    def block_at(self, position: int) -> int:
        return position

    def pin(self) -> None:
        """Nothing else uses the memory."""

    def unpin(self) -> None:
        """See ``pin``."""

    def release(self) -> None:
        """See ``pin``."""


def layout_of(dtype: str, block_size: int) -> KVLayout:
    return KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, block_size=block_size, dtype=dtype)


def ticket_of(
    name: str, layout: KVLayout, num_tokens: int, endpoints: tuple[Endpoint, ...] = ()
) -> TransferTicket:
    return TransferTicket(
        TicketId(name), 1, WorkerId("holder"), "0", endpoints, layout, num_tokens,
        expires_in_s=600.0,
    )  # fmt: skip


def ticket_name(transport: str, number: int) -> str:
    return f"{transport}-{number}"


def read_endpoints(line: bytes) -> tuple[tuple[Endpoint, ...], int]:
    """(KV endpoints, raw port) from the line the holder prints."""
    facts = json.loads(line)
    return tuple(Endpoint(*each) for each in facts["endpoints"]), facts["raw_port"]


async def hold(
    dtype: str,
    block_size: int,
    num_tokens: int,
    num_rounds: int,
    frame_bytes: int,
    transports: str,
) -> None:
    layout = layout_of(dtype, block_size)
    buffers = FilledBuffers(layout, layout.num_blocks(num_tokens), seed=1)
    config = TransferConfig(kv_transports=transports, max_frame_bytes=frame_bytes)
    exporter = Exporter(buffers, MonotonicClock(), config)
    listeners = own_listeners(PrefillConfig(transfer=config, listen="127.0.0.1:0"), buffers)
    endpoints = [await listener.start(exporter.serve) for listener in listeners]
    for endpoint in endpoints:
        for number in range(num_rounds):
            ticket = ticket_of(ticket_name(endpoint.transport, number), layout, num_tokens)
            export = exporter.offer(ticket, WholeMemory(buffers.num_blocks), num_tokens)
            export.advance(num_tokens)
            export.commit(FirstTokenInfo(0, 1))
    with socket.create_server(("127.0.0.1", 0)) as raw:
        threading.Thread(target=serve_raw, args=(raw, buffers.memory), daemon=True).start()
        facts = {
            "endpoints": [(each.transport, each.address) for each in endpoints],
            "raw_port": raw.getsockname()[1],
        }
        print(json.dumps(facts), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await exporter.close()
    for listener in listeners:
        await listener.close()


def serve_raw(server: socket.socket, memory: memoryview) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # the main thread has closed it: the end
            return
        with connection:
            if connection.recv(1):
                for start in range(0, len(memory), _SEND_BYTES):
                    connection.sendall(memory[start : start + _SEND_BYTES])


def main(arguments: list[str]) -> None:
    dtype, block_size, num_tokens, num_rounds, frame_bytes, loop, transports = arguments
    numbers = [int(each) for each in (block_size, num_tokens, num_rounds, frame_bytes)]
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(hold(dtype, *numbers, transports))


if __name__ == "__main__":
    main(sys.argv[1:])
