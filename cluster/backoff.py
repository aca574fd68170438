"""How long to wait before a process that died is started again. Pure."""

from __future__ import annotations


class RestartBackoff:
    """0.2 s, doubling to 10 s; from the start again after a life of 30 s."""

    FIRST_S = 0.2
    LONGEST_S = 10.0
    HEALTHY_S = 30.0

    def __init__(self) -> None:
        self._next_s = self.FIRST_S

    def delay_s(self, lived_s: float) -> float:
        """The wait after a process that lived ``lived_s`` seconds once it was ready."""
        if lived_s >= self.HEALTHY_S:
            self._next_s = self.FIRST_S
        delay_s = self._next_s
        self._next_s = min(2 * self._next_s, self.LONGEST_S)
        return delay_s
