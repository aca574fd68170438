"""``pdserve doctor [OPTIONS OF serve]``: would a service with these options start on this host?

Exit status: 0 yes, 1 a check found a problem, 2 the options themselves are wrong.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cluster.catalogue import known_variables
from cluster.config import DoctorConfig
from cluster.doctor import NOTE, PROBLEM, Finding, examine
from cluster.plan import read_plan, service_parser
from pdserve.config import build_config, unknown_variables


def run_doctor(argv: Sequence[str]) -> int:
    parser = service_parser("pdserve doctor", "Check this host for a service with these options.")
    parser.add_options("doctor", DoctorConfig)
    sources = parser.parse(argv)
    config = build_config(DoctorConfig, "doctor", sources)
    findings = [
        Finding("environment", NOTE, f"{name} is no option", f"did you mean {meant}?")
        for name, meant in unknown_variables(known_variables()).items()
    ]
    findings += examine(read_plan(sources))
    if config.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=1))
    else:
        print("\n".join(_lines(findings)))
    return 1 if any(each.verdict == PROBLEM for each in findings) else 0


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    for each in findings:
        lines.append(f"{each.verdict:<8}{each.check:<18}{each.text}")
        if each.next_step:
            lines.append(f"{'':<8}next: {each.next_step}")
    problems = sum(each.verdict == PROBLEM for each in findings)
    lines.append(f"{problems} problem(s)" if problems else "no problem found")
    return lines
