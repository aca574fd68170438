"""What load tools read of a stream, each rule as its source has it.

Written after aiperf 0.13.0, guidellm 0.8.1 and vLLM 0.32.0 (``vllm bench serve``). A reader is
given the whole body; where a tool takes times, it notes the place of the event instead. Each is as
strict as its tool: what the tool would drop or stumble over, the reader does too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reading:
    """``first_token_at``: number of the event at which the tool stops the clock of the TTFT."""

    text: str = ""
    num_token_events: int = 0
    first_token_at: int | None = None
    first_token_text: str = ""
    usage: dict[str, Any] | None = None
    done: bool = False
    objects: set[str] = field(default_factory=set)

    def token(self, at: int, text: str) -> None:
        if self.first_token_at is None:
            self.first_token_at, self.first_token_text = at, text
        self.num_token_events += 1
        self.text += text


def read_as_aiperf(body: bytes) -> Reading:
    """Objects by their name; content tells a token; usage wherever it stands."""
    reading = Reading()
    for at, event in enumerate(_messages(body)):
        if event is None:
            reading.done = True
            break
        kind = event["object"]  # without it every request fails
        reading.objects.add(kind)
        reading.usage = event.get("usage") or reading.usage
        choices = event.get("choices")
        if not choices:
            continue
        match kind:
            case "chat.completion.chunk":
                text = choices[0]["delta"].get("content")
            case "text_completion":
                text = choices[0].get("text")
            case _:
                raise AssertionError(f"aiperf does not know the object {kind!r}")
        if text:
            reading.token(at, text)
    return reading


def read_as_guidellm(body: bytes) -> Reading:
    """httpx's lines (so Python's splitlines); an ``error`` fails the request."""
    reading = Reading()
    for at, line in enumerate(body.decode().splitlines()):
        stripped = line.strip()
        if not stripped.startswith("data:"):
            continue
        data = stripped.removeprefix("data:").strip()
        if data == "[DONE]":
            reading.done = True
            break
        event = json.loads(data)
        assert "error" not in event
        reading.usage = event.get("usage") or reading.usage
        choices = event.get("choices", [])
        if choices:
            choice = choices[0]
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            if text:
                reading.token(at, text)
    return reading


def read_as_vllm_bench(body: bytes) -> Reading:
    """Any choice is a token, even an empty one; usage only where there is no choice."""
    reading = Reading()
    for at, event in enumerate(_messages(body)):
        if event is None:
            reading.done = True
        elif choices := event.get("choices"):
            choice = choices[0]
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            reading.token(at, text or "")
        elif usage := event.get("usage"):
            reading.usage = usage
    return reading


def _messages(body: bytes) -> list[dict[str, Any] | None]:
    """Events between empty lines, None for [DONE]; lines that begin with a colon are pings."""
    found: list[dict[str, Any] | None] = []
    for message in body.decode().split("\n\n"):
        text = message.strip("\n")
        if not text or text.startswith(":"):
            continue
        data = text.removeprefix("data: ")
        found.append(None if data == "[DONE]" else json.loads(data))
    return found


READERS = {
    "aiperf": read_as_aiperf,
    "guidellm": read_as_guidellm,
    "vllm": read_as_vllm_bench,
}
