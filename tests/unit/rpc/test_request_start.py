"""X-Request-Start in the forms that proxies write it in, and what is no use."""

from __future__ import annotations

import pytest

from pdserve.request_start import request_start, stated_wait_s

NOW_S = 1_700_000_010.0  # ten seconds after the stamps below


@pytest.mark.parametrize(
    "header",
    [
        "t=1700000000",
        "t=1700000000.000",  # nginx
        "1700000000000",  # Heroku
        "t=1700000000000000",  # Apache
        "t=1700000000000000000",
        " 1700000000.0 ",
        "t=1700000000.000, t=1700000009.000",  # the outermost proxy's, which saw it first
        request_start(1_700_000_000.0),
    ],
)
def test_every_usual_form_is_read(header: str) -> None:
    assert stated_wait_s(header, NOW_S) == pytest.approx(10.0, abs=1e-5)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "t=",
        "soon",
        "-1700000000",
        "1.7e9",
        "t=1700000000.1234567890",  # more digits than a nanosecond has
        "t=17000000000000000000000000000000000000000",
        "t=\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660",  # digits, not ASCII
        "t=nan",
        "t=1700000011",  # in the future
        "t=1700000010001",
        "t=1699996409",  # more than an hour ago
        "t=0",
    ],
)
def test_the_rest_is_ignored(header: str | None) -> None:
    assert stated_wait_s(header, NOW_S) == 0.0


def test_an_hour_is_the_most() -> None:
    assert stated_wait_s("t=1699996410", NOW_S) == 3600.0
