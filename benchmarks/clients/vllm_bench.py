"""vLLM's load tool: ``vllm bench serve``, closed loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.clients.tool import Load, Outcome, Target

_RESULT = "result.json"
_BACKENDS = {
    "chat": ("openai-chat", "/v1/chat/completions"),
    "completions": ("openai", "/v1/completions"),
}


class VllmBench:
    name = "vllm"
    program = "vllm"
    environment: Mapping[str, str] = {"HF_HUB_OFFLINE": "1"}

    def command(self, program: str, target: Target, load: Load, out: Path) -> list[str]:
        backend, path = _BACKENDS[load.endpoint]
        return [
            program, "bench", "serve", "--backend", backend,
            "--base-url", target.url, "--endpoint", path,
            "--model", target.model, "--tokenizer", str(target.tokenizer),
            "--dataset-name", "random", "--random-input-len", str(load.isl),
            "--random-output-len", str(load.osl), "--num-prompts", str(load.num_requests),
            "--max-concurrency", str(load.concurrency), "--ignore-eos",
            "--percentile-metrics", "ttft,tpot,itl,e2el",
            "--save-result", "--result-dir", str(out), "--result-filename", _RESULT,
        ]  # fmt: skip

    def outcome(self, out: Path) -> Outcome:
        report = json.loads((out / _RESULT).read_text(encoding="utf-8"))
        return Outcome(
            num_done=report["completed"],
            num_failed=report["failed"],
            ttft_ms=report["median_ttft_ms"],
            itl_ms=report["median_itl_ms"],
            output_tokens_per_s=report["output_throughput"],
        )
