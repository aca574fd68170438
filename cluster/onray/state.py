"""What a service is to be, so that a controller that was restarted goes on with it.

Kept in the key-value store of Ray's control service (as lasting as the cluster, or longer where
that has a database behind it). Only what cannot be found out again is written down.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field

from ray.experimental import internal_kv

NAMESPACE = "pdserve"  # of actors, placement groups and keys
_KEYS, _KEY_END = "pdserve/", "/state"


@dataclass(slots=True)
class SeatRecord:
    """A process that is wanted. ``launch`` counts its starts; ``ports``: http, grpc, worker."""

    launch: int = 0
    ports: tuple[int, int, int] = (0, 0, 0)


@dataclass(slots=True)
class ServiceState:
    """``seats``: wanted processes by seat. ``groups``: seats in order of bundles, two of a pair in
    one bundle, by name of the placement group; a place outlives its seat. ``controller``: the
    actor whose state this is, the same one after a restart."""

    seats: dict[str, SeatRecord] = field(default_factory=dict)
    groups: dict[str, list[list[str]]] = field(default_factory=dict)
    num_groups: int = 0
    controller: str = ""

    def place_of(self, seat: str) -> tuple[str, int] | None:
        """Group and number of the bundle that is this seat's."""
        for group, bundles in self.groups.items():
            for index, seats in enumerate(bundles):
                if seat in seats:
                    return group, index
        return None

    def empty_groups(self) -> list[str]:
        """Groups none of whose places is wanted any more."""
        return [
            group
            for group, bundles in self.groups.items()
            if not any(seat in self.seats for seats in bundles for seat in seats)
        ]

    def free_places(self) -> list[str]:
        """Seats that are reserved and not wanted now: the next of their names to be added."""
        return [
            seat
            for bundles in self.groups.values()
            for seats in bundles
            for seat in seats
            if seat not in self.seats
        ]

    def encode(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, text: bytes) -> ServiceState:
        facts = json.loads(text)
        seats = {
            name: SeatRecord(record["launch"], tuple(record["ports"]))
            for name, record in facts.pop("seats").items()
        }
        return cls(seats=seats, **facts)


class StateStore:
    """The state of one service. Needs a connection to Ray."""

    def __init__(self, service: str) -> None:
        self._key = f"{_KEYS}{service}{_KEY_END}"

    def save(self, state: ServiceState) -> None:
        internal_kv._internal_kv_put(self._key, state.encode(), namespace=NAMESPACE)

    def load(self) -> ServiceState | None:
        text = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE)
        return ServiceState.decode(text) if text else None

    def forget(self) -> None:
        internal_kv._internal_kv_del(self._key, namespace=NAMESPACE)


def forget_all_but(services: Collection[str]) -> None:
    """A driver that is killed outright takes its controller with it, and no one can clear up then:
    what is left of such a service goes when somebody looks next. ``services``: all that have a
    controller; one has its name before it writes its state.
    """
    for key in internal_kv._internal_kv_list(_KEYS, namespace=NAMESPACE):
        service = key.decode().removeprefix(_KEYS).removesuffix(_KEY_END)
        if service not in services:
            StateStore(service).forget()
