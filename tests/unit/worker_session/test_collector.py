"""What a role is made of is not looked at again by the cyclic collector."""

from __future__ import annotations

import gc
import weakref

from pdserve.collector import THRESHOLDS, settle


class _Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_stays_and_later_cycles_still_go() -> None:
    thresholds = gc.get_threshold()
    garbage = weakref.ref(_Knot())
    kept = _Knot()
    try:
        settle()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == THRESHOLDS
        assert garbage() is None
        assert not any(each is kept for each in gc.get_objects())
        later = weakref.ref(_Knot())
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
