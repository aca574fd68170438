"""Percentiles against numpy, and at their edges."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.load.percentiles import percentile, percentiles_ms

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(VALUES, st.floats(0, 100))
def test_equals_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


def test_order_does_not_matter_and_ends_are_the_extremes() -> None:
    values = [5.0, 1.0, 3.0]
    assert [percentile(values, p) for p in (0, 50, 75, 100)] == [1.0, 3.0, 4.0, 5.0]
    assert values == [5.0, 1.0, 3.0]


@pytest.mark.parametrize("percent", [-1, 100.5])
def test_refuses_what_is_no_percentage(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)


def test_refuses_no_values() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_names_and_milliseconds() -> None:
    assert percentiles_ms("ITL", [0.001, 0.003], (50, 100)) == {
        "ITL p50 ms": pytest.approx(2.0),
        "ITL max ms": pytest.approx(3.0),
    }
    assert percentiles_ms("ITL", []) == {}
