"""Python's cyclic collector for a process that serves: what was made at the start stays.

A full collection looks at every object that is tracked: in a router 55,000 after the imports alone,
tens of milliseconds in which the event loop stands still. So what is there when a role is ready is
set aside for good, and collections come less often. Not covered: memory that references alone keep
alive.
"""

from __future__ import annotations

import gc

# Net new containers before the young are looked at, and how often the older ones with them; 700, 10
# and 10 as Python sets them.
THRESHOLDS = (10_000, 20, 20)


def settle() -> None:
    """Called once, when the role has been built and before it takes requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
