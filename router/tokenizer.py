"""The text side of a model: prompts and chats to token ids, token ids to text.

Read from a prepared folder with ``tokenizers`` and ``jinja2`` alone; no torch, no weights. Special
tokens written out in a prompt are read as such, as everywhere; nothing is added to a prompt but the
model's bos token, and that only to plain prompts, since chat templates write their own. This module
does not know limits (text_generation.py) nor clients. Not covered: truncation, images.
"""

from __future__ import annotations

import asyncio
from typing import Self

from tokenizers import Tokenizer

from pdserve.errors import InvalidRequest, ModelFileError
from pdserve.prepared import PreparedModel
from router.chat_template import ChatMessage, ChatTemplate
from router.detokenizer import Detokenizer
from router.token_bytes import TokenBytes

# Longer texts are encoded in a thread: 2,048 characters take 1 to 3 ms on one core.
MAX_CHARS_ON_LOOP = 2048


class TextModel:
    """Tokenizer, chat template and special tokens of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: str | None = None,
        bos_token_id: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        adds_bos: bool = False,
    ) -> None:
        """Raises ModelFileError: decoder of an unknown kind, template that does not compile, or
        ``adds_bos`` without a bos token."""
        if adds_bos and bos_token_id is None:
            raise ModelFileError("manifest.json: adds_bos is set but bos_token_id is null")
        self._tokenizer = tokenizer
        self._token_bytes = TokenBytes(tokenizer)
        self._prefix_ids = (bos_token_id,) if adds_bos and bos_token_id is not None else ()
        self._template: ChatTemplate | None = None
        if chat_template is not None:
            self._template = ChatTemplate(
                chat_template,
                bos_token=self._name_of(bos_token_id),
                eos_token=self._name_of(eos_token_ids[0] if eos_token_ids else None),
            )

    @classmethod
    def load(cls, prepared: PreparedModel) -> Self:
        """Read the text part of a prepared model.

        Raises:
            ModelFileError: tokenizer.json is missing or unreadable, or as the constructor does.
        """
        try:
            source = prepared.tokenizer_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{prepared.tokenizer_path}: {error}") from error
        return cls(
            _parse_tokenizer(source, str(prepared.tokenizer_path)),
            chat_template=prepared.chat_template,
            bos_token_id=prepared.bos_token_id,
            eos_token_ids=prepared.eos_token_ids,
            adds_bos=prepared.adds_bos,
        )

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def render_chat(
        self, messages: tuple[ChatMessage, ...], *, add_generation_prompt: bool = True
    ) -> str:
        """Prompt text of a chat; encode it with ``encode_rendered``.

        Raises:
            InvalidRequest: the model has no template, or its template refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest("messages", "this model has no chat template; send a plain prompt")
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    async def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, with bos first if the model wants one."""
        ids = await self.encode_rendered(text)
        # A prompt that writes the bos token out itself must not get a second one.
        return ids if ids[:1] == self._prefix_ids else self._prefix_ids + ids

    async def encode_rendered(self, text: str) -> tuple[int, ...]:
        """Token ids of exactly this text. Long texts are encoded off the event loop."""
        if len(text) <= MAX_CHARS_ON_LOOP:
            return self._encode(text)
        return await asyncio.to_thread(self._encode, text)

    def detokenizer(self, *, continues: bool) -> Detokenizer:
        """For one generation. ``continues``: its text goes on after a plain prompt's."""
        return Detokenizer(self._token_bytes, continues=continues)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The whole text of some tokens, special ones by their names."""
        text = b"".join(map(self._token_bytes.token_bytes, token_ids)).decode(errors="replace")
        for _ in range(self._token_bytes.num_leading_spaces):
            text = text.removeprefix(" ")
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, special ones by name; may be part of a character."""
        return self._token_bytes.token_bytes(token_id)

    def _encode(self, text: str) -> tuple[int, ...]:
        # The batch call, unlike the single one, releases the interpreter lock; without offsets it
        # takes half the time.
        encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return tuple(encoding.ids)

    def _name_of(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.id_to_token(token_id) or ""


def _parse_tokenizer(source: str, path: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise ModelFileError(f"{path}: not a tokenizer: {error}") from error
    # A folder may carry the truncation and padding of some training run.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
