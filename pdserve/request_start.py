"""When a request began, as whoever sent or passed it on states it: the header ``X-Request-Start``.

Proxies set it to the time of day at which a request reached them, so that the wait in front of a
service is seen (by gRPC: metadata of the same name). It is read on another host's clock: good for
being shown, never for deadlines or admission. Not covered: several stamps of several proxies (the
first counts).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REQUEST_START = "x-request-start"
MAX_AGE_S = 3600.0

_STAMP = re.compile(r"(?:t=)?(\d{1,19}(?:\.\d{1,9})?)", re.ASCII)
# Seconds (nginx), milliseconds (Heroku), microseconds (Apache) or nanoseconds: told by size.
_UNITS_S = (1.0, 1e-3, 1e-6, 1e-9)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request's way up to where it is understood: ``before_face_s`` stated, the rest measured."""

    receive_s: float = 0.0
    before_face_s: float = 0.0


AT_ONCE = Arrival()


def stated_wait_s(header: str | None, now_unix_s: float) -> float:
    """How long before ``now_unix_s`` the request began; 0 if nothing usable is stated.

    Unusable: what is no number, lies in the future, or is more than an hour old.
    """
    match = _STAMP.fullmatch((header or "").split(",", 1)[0].strip())
    if match is None:
        return 0.0
    stamp = float(match[1])
    waits_s = (now_unix_s - stamp * unit_s for unit_s in _UNITS_S)
    return next((wait_s for wait_s in waits_s if 0 <= wait_s <= MAX_AGE_S), 0.0)


def request_start(unix_s: float) -> str:
    """The header's value."""
    return f"t={unix_s:.6f}"
