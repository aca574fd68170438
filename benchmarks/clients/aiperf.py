"""NVIDIA's aiperf: ``aiperf profile``, closed loop.

It must not see HF_HUB_OFFLINE: with it, a tokenizer's folder is taken for a name on a hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.clients.tool import Load, Outcome, Target


class Aiperf:
    name = "aiperf"
    program = "aiperf"
    environment: Mapping[str, str] = {}

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        return [
            program, "profile", "-m", target.model, "--url", target.url,
            "--endpoint-type", load.endpoint, "--streaming", "--tokenizer", str(target.tokenizer),
            "--isl", str(load.isl), "--isl-stddev", "0",
            "--osl", str(load.osl), "--osl-stddev", "0",
            "--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{load.osl}",
            "--use-server-token-count", "--concurrency", str(load.concurrency),
            "--request-count", str(load.num_requests),
            "--warmup-request-count", str(load.concurrency),
            "--num-dataset-entries", str(load.num_requests), "--random-seed", "1",
            "--ui", "none", "--output-artifact-dir", str(out),
        ]  # fmt: skip

    def outcome(self, out: Path) -> Outcome:
        report = json.loads((out / "profile_export_aiperf.json").read_text(encoding="utf-8"))
        return Outcome(
            num_done=round(report["request_count"]["avg"]),
            num_failed=sum(error["count"] for error in report["error_summary"]),
            ttft_ms=report["time_to_first_token"]["p50"],
            itl_ms=report["inter_token_latency"]["p50"],
            output_tokens_per_s=report["output_token_throughput"]["avg"],
        )
