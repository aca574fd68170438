"""How far a request has come at the router (docs/protocol.md section 2)."""

from __future__ import annotations

from enum import StrEnum


class FlightState(StrEnum):
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    PREFILLED = "prefilled"
    COMMITTED = "committed"
    ENDED = "ended"
