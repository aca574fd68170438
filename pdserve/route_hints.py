"""What a client says about a request for its routing alone; workers never see it.

The same names in HTTP headers and gRPC metadata:

    x-pdserve-tenant     whose request it is: tenants share the queue evenly. Absent: told by the
                         Authorization header, of which only a hash is kept; or nobody's
    x-pdserve-session    requests of one session go to the same workers while those have room
    x-pdserve-explain    "1": the ledger says what was known of each candidate, and its cost

Not covered: whether a tenant is who it says it is; that is for whoever stands before the service.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from pdserve.errors import InvalidRequest

TENANT = "x-pdserve-tenant"
SESSION = "x-pdserve-session"
EXPLAIN = "x-pdserve-explain"
MAX_CHARS = 128


@dataclass(frozen=True, slots=True)
class RouteHints:
    tenant: str = ""
    session: str = ""
    explain: bool = False

    def __post_init__(self) -> None:
        for name, value in ((TENANT, self.tenant), (SESSION, self.session)):
            if len(value) > MAX_CHARS or not (value.isascii() and value.isprintable()):
                raise InvalidRequest(name, f"at most {MAX_CHARS} printable ASCII characters")


NO_HINTS = RouteHints()


def read_hints(header: Callable[[str], str | None]) -> RouteHints:
    """``header`` gives the value of one by its lower-case name.

    Raises:
        InvalidRequest: a value is too long or not printable; names the header.
    """
    tenant = header(TENANT)
    if not tenant and (key := header("authorization")):
        tenant = f"key-{xxhash.xxh3_64_hexdigest(key.encode())}"
    return RouteHints(tenant or "", header(SESSION) or "", header(EXPLAIN) == "1")


def as_metadata(hints: RouteHints) -> tuple[tuple[str, str], ...]:
    """Those that say something."""
    pairs = ((TENANT, hints.tenant), (SESSION, hints.session), (EXPLAIN, "1" * hints.explain))
    return tuple(pair for pair in pairs if pair[1])
