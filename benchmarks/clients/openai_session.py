"""The ``openai`` client against a running service: ``python -m ... URL MODEL RESULT``.

Every kind of call a program makes of it, each judged by what the client's own types say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import openai

from benchmarks.clients.sessions import write_outcome

_ASK = "What is the capital of France?"


class Session:
    """One method a call; a method that raises has failed."""

    def __init__(self, url: str, model: str) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        self._model = model

    def models(self) -> None:
        _check(self._model in [model.id for model in self._client.models.list()])

    def chat(self) -> None:
        answer = self._client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": _ASK}], temperature=0,
            max_completion_tokens=24,
        )  # fmt: skip
        _check("Paris" in (answer.choices[0].message.content or ""))
        _check(answer.usage is not None and answer.usage.completion_tokens > 0)

    def chat_stream(self) -> None:
        chunks = list(
            self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": _ASK}], temperature=0,
                max_tokens=24, stream=True, stream_options={"include_usage": True},
            )
        )  # fmt: skip
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        _check("Paris" in text)
        _check(chunks[-1].choices == [] and chunks[-1].usage is not None)

    def roles_and_tools(self) -> None:
        call = {"id": "c1", "type": "function",
                "function": {"name": "capital", "arguments": '{"of": "France"}'}}  # fmt: skip
        answer = self._client.chat.completions.create(
            model=self._model,
            messages=[
                {"role": "developer", "content": "Answer with one word."},
                {"role": "user", "content": [{"type": "text", "text": _ASK}], "name": "ann"},
                {"role": "assistant", "tool_calls": [call]},  # type: ignore[list-item]
                {"role": "tool", "tool_call_id": "c1", "content": "Paris"},
            ],
            temperature=0, max_tokens=8,
        )  # fmt: skip
        _check(answer.choices[0].finish_reason in ("stop", "length"))

    def prompts(self) -> None:
        answer = self._client.completions.create(
            model=self._model, prompt=["One two three", "A B C"], max_tokens=4, temperature=0,
            echo=True,
        )  # fmt: skip
        _check([choice.index for choice in answer.choices] == [0, 1])
        _check(answer.choices[1].text.startswith("A B C"))

    def token_arrays(self) -> None:
        stream = self._client.completions.create(
            model=self._model, prompt=[[504, 3575], [504, 3575, 282]], max_tokens=4, stream=True
        )
        _check({choice.index for chunk in stream for choice in chunk.choices} == {0, 1})

    def request_id(self) -> None:
        answer = self._client.chat.completions.with_raw_response.create(
            model=self._model, messages=[{"role": "user", "content": "Hi"}], max_tokens=1,
            extra_headers={"X-Request-ID": "session-1"},
        )  # fmt: skip
        _check(answer.headers["x-request-id"] == "session-1")

    def refusals(self) -> None:
        refused = {"suffix": {"suffix": "x"}, "n": {"n": 2}, "best_of": {"best_of": 2}}
        for field, fields in refused.items():
            try:
                self._client.completions.create(model=self._model, prompt="Hi", **fields)  # type: ignore[call-overload]
            except openai.BadRequestError as error:
                _check(error.param == field)
            else:
                raise AssertionError(f"{field} was not refused")


def main(arguments: list[str]) -> int:
    url, model, result = arguments
    session = Session(url, model)
    calls: list[Callable[[], None]] = [
        session.models, session.chat, session.chat_stream, session.roles_and_tools,
        session.prompts, session.token_arrays, session.request_id, session.refusals,
    ]  # fmt: skip
    failures = []
    for call in calls:
        try:
            call()
        except (openai.OpenAIError, AssertionError) as error:
            failures.append(f"{call.__name__}: {type(error).__name__}: {error}")
            print(failures[-1])
    write_outcome(Path(result), failures, len(calls))
    return 0


def _check(true: bool) -> None:
    if not true:
        raise AssertionError("the answer is not what it should be")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
