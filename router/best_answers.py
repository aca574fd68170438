"""The best of several answers to a prompt: those whose tokens were likeliest on the mean.

    generations -> AnswerStreams -> all whole -> the best, best first -> one reader (the face)

One rule for both faces: so many are generated as ``best_of`` says, and of more than are told the
likeliest come first. Which is known when all have ended. The failure of one ends all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from router.answer_streams import AnswerStreams
from router.text_generation import TextGeneration
from router.text_job import TextDelta

_PIECE_TOKENS = 512  # of an answer at once, so that no message grows without bound


@dataclass(slots=True)
class WholeAnswer:
    """One answer as it is put together."""

    deltas: list[TextDelta] = field(default_factory=list)

    def add(self, delta: TextDelta) -> None:
        self.deltas.append(delta)

    def whole(self) -> TextDelta:
        return _joined(self.deltas)

    def pieces(self) -> Iterator[TextDelta]:
        """The whole in parts of some length."""
        part: list[TextDelta] = []
        num_tokens = 0
        for delta in self.deltas:
            if part and num_tokens + len(delta.token_ids) > _PIECE_TOKENS:
                yield _joined(part)
                part, num_tokens = [], 0
            part.append(delta)
            num_tokens += len(delta.token_ids)
        yield _joined(part)

    def mean_logprob(self) -> float:
        """Of a token; only of an answer with log probabilities."""
        logprobs = [each.chosen.logprob for delta in self.deltas for each in delta.logprobs]
        return sum(logprobs) / len(logprobs)


def likeliest(answers: Sequence[WholeAnswer], num_told: int) -> list[WholeAnswer]:
    """Those to tell: all in their order, or of more than that the likeliest, best first."""
    if len(answers) <= num_told:
        return list(answers)
    return sorted(answers, key=WholeAnswer.mean_logprob, reverse=True)[:num_told]


class BestAnswers:
    """To be read like AnswerStreams; nothing comes before all answers have ended."""

    def __init__(self, generations: Sequence[TextGeneration], num_told: int) -> None:
        self._streams = AnswerStreams(generations)
        self._whole = [WholeAnswer() for _ in generations]
        self._num_told = num_told
        self._told: Iterator[tuple[int, TextDelta]] | None = None

    async def read(self) -> tuple[int, TextDelta] | None:
        """The next piece of the best answer, then of the next one; None at the end.

        Raises:
            PdserveError: what the first answer that failed raised.
        """
        if self._told is None:
            while (item := await self._streams.read()) is not None:
                self._whole[item[0]].add(item[1])
            told = enumerate(likeliest(self._whole, self._num_told))
            self._told = ((index, piece) for index, each in told for piece in each.pieces())
        return next(self._told, None)

    def close(self) -> None:
        """Read no further. The generations themselves are the caller's to cancel."""
        self._streams.close()


def _joined(deltas: Sequence[TextDelta]) -> TextDelta:
    return TextDelta(
        "".join(delta.text for delta in deltas),
        tuple(token_id for delta in deltas for token_id in delta.token_ids),
        tuple(each for delta in deltas for each in delta.logprobs),
        deltas[-1].finish_reason,
    )
