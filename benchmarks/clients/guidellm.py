"""guidellm: ``guidellm run`` with a fixed number of streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.clients.tool import Load, Outcome, Target

_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class Guidellm:
    name = "guidellm"
    program = "guidellm"
    environment: Mapping[str, str] = {"HF_HUB_OFFLINE": "1"}

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        path = _PATHS[load.endpoint]
        return [
            program, "run",
            "--backend", f"kind=openai_http,target={target.url},model={target.model},"
            f"request_format={path}",
            "--profile", f"kind=concurrent,streams={load.concurrency}",
            "--constraint", f"kind=max_requests,count={load.num_requests}",
            "--tokenizer", f"kind=huggingface_auto,model={target.tokenizer}",
            "--data",
            f"kind=synthetic_text,prompt_tokens={load.isl},output_tokens={load.osl}",
            "--disable-progress", "--output", f"kind=json,path={out / 'report.json'}",
        ]  # fmt: skip

    def outcome(self, out: Path) -> Outcome:
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        metrics = report["benchmarks"][0]["metrics"]
        totals = metrics["request_totals"]
        return Outcome(
            num_done=totals["successful"],
            num_failed=totals["errored"] + totals["incomplete"],
            ttft_ms=metrics["time_to_first_token_ms"]["successful"]["median"],
            itl_ms=metrics["inter_token_latency_ms"]["successful"]["median"],
            output_tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
        )
