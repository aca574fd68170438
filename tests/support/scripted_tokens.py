"""A TokenService that plays a script, and a text model whose tokens are bytes.

Token ids 0 to 255 are the bytes; then come END (end of sequence, special), BOS (special) and WORD
(an added token that is not special). Nothing here waits for time: a script pauses where it is told
and goes on when the test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pdserve.errors import PdserveError, RequestCancelled
from pdserve.prepared import ModelConfig, PreparedModel, RopeScaling
from pdserve.request_timing import RequestTiming
from pdserve.route_hints import RouteHints
from pdserve.types import FinishReason, ModelInfo, Request, RequestId, TokenEvent, TokenLogprobs
from router.tokenizer import TextModel

END, BOS, WORD = 256, 257, 258
VOCAB_SIZE = 259
MODEL_NAME = "byte-model"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and loop.index > 1 %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_alphabet() -> list[str]:
    """Byte-level BPE's character of each byte, in order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    characters = {value: chr(value) for value in printable}
    characters |= {value: chr(256 + rank) for rank, value in enumerate(others)}
    return [characters[value] for value in range(256)]


def byte_tokenizer() -> Tokenizer:
    vocab = {character: value for value, character in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<bos>"])
    tokenizer.add_tokens([AddedToken("new wörd", special=False, normalized=False)])
    return tokenizer


def byte_text_model(
    *, adds_bos: bool = False, chat_template: str | None = CHAT_TEMPLATE
) -> TextModel:
    return TextModel(
        byte_tokenizer(),
        chat_template=chat_template,
        bos_token_id=BOS,
        eos_token_ids=(END,),
        adds_bos=adds_bos,
    )


def write_byte_model(folder: Path, *, adds_bos: bool = False) -> PreparedModel:
    """The text part of a prepared folder (no weights), as TextModel.load reads it."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    shape = ModelConfig("fake", VOCAB_SIZE, 8, 8, 1, 1, 1, 8, 1e-5, 1e4, RopeScaling(), 512, True)
    return PreparedModel(
        folder=folder, name=MODEL_NAME, fingerprint="f", dtype="float32", weights="full",
        source="test",
        config=shape, tensors={}, bos_token_id=BOS, eos_token_ids=(END,), adds_bos=adds_bos,
        num_parameters=0,
    )  # fmt: skip


@dataclass
class Script:
    """What one request gets.

    ``token_ids`` come in order; a reply shorter than max_tokens ends with END and STOP. Before the
    token of index ``pause_at`` the script waits for ``resume``. At index ``fail_at`` it raises
    ``error``; an error without ``fail_at`` refuses the request at start.
    """

    token_ids: tuple[int, ...]
    pause_at: int | None = None
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    fail_at: int | None = None
    error: PdserveError | None = None
    logprob: float = -0.5  # of every chosen token


def script(text: str | bytes, **settings: object) -> Script:
    reply = text.encode() if isinstance(text, str) else text
    return Script(tuple(reply), **settings)  # type: ignore[arg-type]


class ScriptedTokens:
    """Gives each request the next script; the last one over and over.

    ``requests`` are those that were started, ``cancels`` the cancellations that reached a request
    still running, ``num_running`` the generations that have not come to an end, ``ended`` is set
    when the first has.
    """

    def __init__(self, *scripts: Script, max_model_len: int = 512) -> None:
        self.model = ModelInfo(MODEL_NAME, "f", VOCAB_SIZE, max_model_len, (END,))
        self.requests: list[Request] = []
        self.tokenize_s: list[float] = []
        self.follows: list[RequestId | None] = []
        self.hints: list[RouteHints | None] = []
        self.cancels: list[tuple[RequestId, str]] = []
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self.num_running = 0
        self.num_events_made = 0
        self._scripts = list(scripts)

    def start(
        self,
        request: Request,
        *,
        tokenize_s: float = 0.0,
        follows: RequestId | None = None,
        hints: RouteHints | None = None,
    ) -> ScriptedGeneration:
        current = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        if current.error is not None and current.fail_at is None:
            raise current.error
        self.requests.append(request)
        self.tokenize_s.append(tokenize_s)
        self.follows.append(follows)
        self.hints.append(hints)
        self.num_running += 1
        return ScriptedGeneration(self, current, request)


class ScriptedGeneration:
    """One request under way, as router/generation.py describes it."""

    def __init__(self, service: ScriptedTokens, played: Script, request: Request) -> None:
        self._service = service
        self._script = played
        self._request = request
        self._cancelled: str | None = None
        self._ended = False
        self.timing = RequestTiming(
            tokenize_s=0.25, queue_s=0.5, prefill_compute_s=1.0, kv_bytes=4096, kv_tokens=8,
            kv_transport="inproc", prefill_worker="p0", decode_worker="d0", num_dispatches=1,
        )  # fmt: skip

    @property
    def request_id(self) -> RequestId:
        return self._request.request_id

    @property
    def num_cached_tokens(self) -> int:
        return self.timing.prefill_cached_tokens

    def cancel(self, reason: str) -> None:
        if self._ended or self._cancelled is not None:
            return
        self._cancelled = reason
        self._service.cancels.append((self.request_id, reason))
        self._service.cancelled.set()
        self._script.resume.set()
        self._end()

    def ready(self) -> TokenEvent | None:
        return None

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        for event in self._events():
            await self._pause(event.index)
            if self._cancelled is not None:
                raise RequestCancelled(self._cancelled)
            if event.index == self._script.fail_at and self._script.error is not None:
                self._end()
                raise self._script.error
            self._service.num_events_made += 1
            if event.finish_reason is not None:
                self.timing = replace(self.timing, total_s=9.0)
                self._end()
            yield event

    async def _pause(self, index: int) -> None:
        if index == self._script.pause_at:
            await self._script.resume.wait()
        await asyncio.sleep(0)  # as a queue would, let others run between two tokens

    def _events(self) -> Iterable[TokenEvent]:
        sampling = self._request.sampling
        tokens = (*self._script.token_ids, END)[: sampling.max_tokens]
        for index, token_id in enumerate(tokens):
            reason = FinishReason.LENGTH if index + 1 == sampling.max_tokens else None
            if token_id == END:
                reason = FinishReason.STOP
            yield TokenEvent(self.request_id, 1, index, token_id, reason, self._logprobs(token_id))
            if reason is not None:
                return

    def _logprobs(self, token_id: int) -> TokenLogprobs | None:
        num_top = self._request.sampling.num_logprobs
        if num_top is None:
            return None
        return TokenLogprobs(
            self._script.logprob, tuple((65 + rank, -1.0 - rank) for rank in range(num_top))
        )

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._service.num_running -= 1
            self._service.ended.set()
