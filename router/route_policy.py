"""The names of the ways to choose a worker (policy.py says what they do)."""

from __future__ import annotations

from enum import StrEnum


class RoutePolicy(StrEnum):
    COST = "cost"
    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    POWER_OF_TWO = "power-of-two"
