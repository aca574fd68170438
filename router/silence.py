"""Whether a worker that should report once a heartbeat has fallen silent.

It then gets nothing new, long before it counts as lost (pool.py): a stopped decode worker would
hold up the first token of every prompt that was to go there. A router whose own event loop was busy
read nothing meanwhile, so it looks twice: what had come by the first look is read before the
second.
No clock, no timers.
"""

from __future__ import annotations

SILENT_HEARTBEATS = 3.0  # without a report, then half a one more until the second look


class Silence:
    def __init__(self, now_s: float) -> None:
        self.is_silent = False
        self._since_s = now_s
        self._looked = False

    def heard(self, now_s: float) -> None:
        self.is_silent = False
        self._since_s = now_s
        self._looked = False

    def look(self, now_s: float, heartbeat_s: float) -> float:
        """Take what time has passed; returns when to look again."""
        due_s = self._since_s + SILENT_HEARTBEATS * heartbeat_s
        if now_s < due_s:
            return due_s
        if self._looked:
            self.is_silent = True
            return now_s + heartbeat_s
        self._looked = True
        return now_s + heartbeat_s / 2
