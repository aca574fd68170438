"""What a face (HTTP, gRPC) asks of the text service, and what it gets back piece by piece.

Frozen values only; text_generation.py works with them. Several prompts of one request are several
jobs, and so are several answers to one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from pdserve.errors import InvalidRequest
from pdserve.route_hints import RouteHints
from pdserve.types import FinishReason, RequestId, SamplingParams
from router.chat_template import ChatMessage
from router.stop_strings import check_stop_strings

MAX_TIMEOUT_S = 24 * 3600.0
MAX_PRIORITY = 1_000_000
MAX_ANSWERS = 128  # of one request, to all its prompts
MAX_REQUEST_ID_CHARS = 128


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text, continued as it stands (after the model's bos token, if it wants one)."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, used as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages, turned into text by the model's chat template."""

    messages: tuple[ChatMessage, ...]


Prompt = TextPrompt | TokenPrompt | ChatPrompt


def check_num_answers(field: str, num_answers: int) -> None:
    """Raises InvalidRequest."""
    if not 1 <= num_answers <= MAX_ANSWERS:
        raise InvalidRequest(field, f"must lie in [1, {MAX_ANSWERS}], not {num_answers}")


def check_best_of(best_of: int | None, num_told: int, told_field: str) -> int:
    """Answers to generate so that the best ``num_told`` are told. Raises InvalidRequest."""
    if best_of is None:
        return num_told
    if not num_told <= best_of <= MAX_ANSWERS:
        raise InvalidRequest(
            "best_of", f"must lie in [{told_field} = {num_told}, {MAX_ANSWERS}], not {best_of}"
        )
    return best_of


def to_choose_by(num_logprobs: int | None, num_answers: int, num_told: int) -> int | None:
    """Log probabilities to ask of the workers: where the best are told, of the chosen tokens."""
    return 0 if num_logprobs is None and num_answers > num_told else num_logprobs


def answer_id(request_id: RequestId, position: int) -> RequestId:
    """The id of one of several answers to a request, within the limit of ids."""
    ending = f"-{position}"
    return RequestId(request_id[: MAX_REQUEST_ID_CHARS - len(ending)] + ending)


_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)
_MASK = 2**64 - 1


def seed_of_answer(seed: int, answer_index: int) -> int:
    """The seed of one of several answers: the request's own for the first, so that it is the same
    however many there are; a SplitMix64 step away for each other."""
    if not answer_index:
        return seed
    mixed = (seed + answer_index * _GOLDEN) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) >> 1


def new_request_id() -> RequestId:
    return RequestId(f"req-{uuid4().hex}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """One generation as a client asked for it.

    ``max_tokens`` None means whatever the context leaves after the prompt; ``seed`` None means that
    one is drawn. Both take the place of the fields of that name in ``sampling``, whose own values
    are not looked at. ``timeout_s`` runs from the moment the job is started. An empty
    ``request_id`` gets a new one. ``prompt_index`` is the place of the prompt where one request has
    several, so that a fault can name it. ``answer_index`` counts the answers to one prompt: all but
    the first share its prompt's KV and draw from a seed of their own.
    """

    prompt: Prompt
    sampling: SamplingParams
    max_tokens: int | None
    seed: int | None
    stop_strings: tuple[str, ...] = ()
    priority: int = 0
    timeout_s: float | None = None
    request_id: RequestId = RequestId("")
    prompt_index: int | None = None
    answer_index: int = 0
    cache_salt: str = ""
    hints: RouteHints = RouteHints()
    traceparent: str = ""  # of the client's span, checked; "": none

    @property
    def prompt_field(self) -> str:
        """What a client calls the prompt."""
        if isinstance(self.prompt, ChatPrompt):
            return "messages"
        return "prompt" if self.prompt_index is None else f"prompt[{self.prompt_index}]"

    def __post_init__(self) -> None:
        check_stop_strings(self.stop_strings)
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise InvalidRequest(
                "timeout_s", f"must lie in (0, {MAX_TIMEOUT_S:g}], not {self.timeout_s!r}"
            )
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidRequest(
                "priority",
                f"must lie in [{-MAX_PRIORITY}, {MAX_PRIORITY}], not {self.priority!r}",
            )


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token with its text, for log probabilities.

    ``text`` has U+FFFD where the token holds a part of a character; ``token_bytes`` is exact.
    """

    token_id: int
    text: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TextLogprobs:
    """Of one generated token, and of the best tokens in its place, best first."""

    chosen: TokenText
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one token added, or several that were there together.

    ``text`` is empty while a character is incomplete or a stop string may be beginning; later text
    carries it on. ``logprobs`` has one entry for each of ``token_ids`` if they were asked for.
    Exactly the last delta has a finish reason.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TextLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
