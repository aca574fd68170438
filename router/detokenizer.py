"""Token ids to text, one token at a time, never splitting a character.

Bytes of tokens go through an incremental UTF-8 decoder: an incomplete character is held back until
the token that completes it; bytes that can never become a character turn into U+FFFD, as they do
when all ids are decoded at once. Each token costs the same, however long the text is. This module
does not know stop strings (stop_strings.py) nor which tokens end a text. Not covered: for byte
fallback tokenizers an ill-formed run of byte tokens may give another number of U+FFFD than
decoding at once, which replaces valid characters of such a run too.
"""

from __future__ import annotations

import codecs

from router.token_bytes import TokenBytes

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one generation.

    ``continues`` says that the text goes on after a prompt's, so that a decoder's habit of dropping
    the space before a text's first word must not apply.
    """

    def __init__(self, token_bytes: TokenBytes, *, continues: bool = False) -> None:
        self._token_bytes = token_bytes
        self._utf8 = _Utf8Decoder(errors="replace")
        self._num_spaces_to_drop = 0 if continues else token_bytes.num_leading_spaces

    def push(self, *token_ids: int) -> str:
        """Text that these tokens complete; empty while a character is incomplete."""
        pushed = b"".join([self._token_bytes.text_bytes(token_id) for token_id in token_ids])
        return self._trimmed(self._utf8.decode(pushed))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        while self._num_spaces_to_drop and text:
            if not text.startswith(" "):
                self._num_spaces_to_drop = 0
            else:
                text = text[1:]
                self._num_spaces_to_drop -= 1
        return text
