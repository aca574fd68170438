"""docs/errors.md tells every error once, with the statuses that the code gives it."""

from __future__ import annotations

import re

from pdserve.errors import all_errors
from support.source_tree import ROOT

_ROW = re.compile(r"^\| `(?P<code>\w+)` \| (?P<http>\d{3}) \| (?P<grpc>[A-Z_]+) \|", re.MULTILINE)


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    told = [(row["code"], int(row["http"]), row["grpc"]) for row in _ROW.finditer(page)]
    errors = all_errors()
    assert sorted(told) == sorted(
        (code, error.http_status, error.grpc_code) for code, error in errors.items()
    )
