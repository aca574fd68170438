"""Options of KV transfer, for both ends of the road."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kvtransfer.coding import CODINGS, EXACT
from pdserve.config import Option
from pdserve.errors import ConfigError
from pdserve.types import KVLayout

MIB = 1 << 20
TRANSPORTS = ("shm", "nixl", "tcp", "ray", "grpc")  # between processes, in order of preference
ONLY_BY_NAME = ("nixl",)  # not part of "auto"


@dataclass(frozen=True, slots=True)
class TransferConfig:
    kv_transports: Annotated[
        str,
        Option("what KV may travel by, with commas: shm, nixl (needs its package), tcp, ray "
               "(between Ray actors), grpc; auto: all of them but nixl. A prefill worker offers "
               "these, in this order, and a decode worker takes the first of them that it may use "
               "and can reach"),
    ] = "auto"  # fmt: skip
    kv_in_flight: Annotated[
        str,
        Option("how a decode worker asks for KV: exact, as it is; or 8 bits a value, with an error "
               "(docs/decisions/0015): int8, or fp8 (e4m3). Where it reads a holder's memory "
               "itself (shm, nixl) KV is exact",
               choices=(EXACT, *CODINGS)),
    ] = EXACT  # fmt: skip
    max_frame_bytes: Annotated[
        int, Option("most KV in one frame; one block if that is larger", unit="bytes", low=1)
    ] = 4 * MIB
    credit_bytes: Annotated[
        int,
        Option("KV a holder may have on its way to one reader; one block at least", unit="bytes",
               low=1),
    ] = 32 * MIB  # fmt: skip
    intake_bytes_per_step: Annotated[
        int, Option("KV taken in between two decode steps while sequences run", unit="bytes", low=1)
    ] = 8 * MIB
    kv_probe_bytes: Annotated[
        int,
        Option("what a decode worker reads from each prefill worker it meets (half of its pool, if "
               "that is less), twice over each transport they share, to tell how fast KV comes: "
               "while no request moves KV at either, in a tenth of its time at most; 0: nothing",
               unit="bytes", low=0),
    ] = 8 * MIB  # fmt: skip
    read_back: Annotated[
        bool,
        Option("check arriving KV again on what a GPU's memory holds: one more copy of every byte "
               "out of it; in host memory that is how it is checked anyway"),
    ] = True  # fmt: skip
    open_timeout_s: Annotated[
        float,
        Option("wait for a connection, for a peer's first message, and of a reader for a ticket "
               "that is not offered yet", unit="s", low=0),
    ] = 10.0  # fmt: skip
    ready_timeout_s: Annotated[
        float,
        Option("wait of a reader for its first answer; above open_timeout_s", unit="s", low=0),
    ] = 15.0
    send_timeout_s: Annotated[
        float, Option("a peer that takes no bytes for so long is cut", unit="s", low=0)
    ] = 30.0
    silence_timeout_s: Annotated[
        float,
        Option("a holder that says nothing for so long is given up by its reader; it says that it "
               "lives in every tenth of it: the same for all workers", unit="s", low=0.01),
    ] = 30.0  # fmt: skip
    farewell_timeout_s: Annotated[
        float, Option("wait for a peer to end the stream after the last message", unit="s", low=0)
    ] = 2.0

    @property
    def alive_every_s(self) -> float:
        return self.silence_timeout_s / 10

    def allows(self, transport: str) -> bool:
        """Raises ConfigError: ``kv_transports`` has a name that is no transport's."""
        if self.kv_transports == "auto":
            return transport not in ONLY_BY_NAME
        names = [name.strip() for name in self.kv_transports.split(",")]
        for name in names:
            if name not in TRANSPORTS:
                raise ConfigError(f"kv_transports: {name!r} is none of {', '.join(TRANSPORTS)}")
        return transport in names

    def max_payload_bytes(self, layout: KVLayout) -> int:
        return max(self.max_frame_bytes, layout.block_bytes)

    def max_message_bytes(self, layout: KVLayout) -> int:
        """Limit of one message, for transports: the largest payload and 1 MiB for its header."""
        return self.max_payload_bytes(layout) + MIB
