"""A prepared model folder without weights: what the fake engine "runs" and the router reads.

One token a byte (id = byte value), then ``<eos>``, ``<user>`` and ``<assistant>``; the vocabulary
is padded to 320 as real ones are padded. Everything that reads prepared folders reads this one in
the ordinary way. Not covered: weights (there are none), merges.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pdserve.config import cache_folder
from pdserve.prepared import (
    CHAT_TEMPLATE_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER_NAME,
    ModelConfig,
    PreparedModel,
    RopeScaling,
    read_prepared,
    write_manifest,
)

NUM_BYTES = 256
EOS_TOKEN_ID = 256
SPECIAL_TOKENS = ("<eos>", "<user>", "<assistant>")
VOCAB_SIZE = 320
MAX_POSITIONS = 8192

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<assistant>' if message['role'] == 'assistant' else '<user>' }}{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_CONFIG = ModelConfig(
    architecture="fake",
    vocab_size=VOCAB_SIZE,
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(),
    max_positions=MAX_POSITIONS,
    tied_embeddings=True,
)


def prepare_fake_model(cache_dir: Path | None = None, dtype: str = "float32") -> PreparedModel:
    """The folder, written on first use under ``cache_dir`` (default: the user's model cache).

    The same build gives the same files and fingerprint everywhere. Safe to race: the folder is
    made aside and renamed into place.
    """
    tokenizer = _tokenizer().to_str()
    fingerprint = _fingerprint(tokenizer, dtype)
    parent = cache_dir if cache_dir is not None else cache_folder() / "models"
    folder = parent / f"fake-{fingerprint[:12]}-{dtype}-v{FORMAT_VERSION}"
    if not (folder / MANIFEST_NAME).exists():
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".fake-", dir=parent))
        _write(aside, tokenizer, fingerprint, dtype)
        try:
            os.rename(aside, folder)
        except OSError:
            shutil.rmtree(aside)
            if not (folder / MANIFEST_NAME).exists():  # not lost to another process: a real fault
                raise
    return read_prepared(folder)


def _write(folder: Path, tokenizer: str, fingerprint: str, dtype: str) -> None:
    (folder / TOKENIZER_NAME).write_text(tokenizer, encoding="utf-8")
    (folder / CHAT_TEMPLATE_NAME).write_text(_CHAT_TEMPLATE, encoding="utf-8")
    write_manifest(
        PreparedModel(
            folder=folder,
            name="fake",
            fingerprint=fingerprint,
            dtype=dtype,
            weights="full",
            source="engine without a model",
            config=_CONFIG,
            tensors={},
            bos_token_id=None,
            eos_token_ids=(EOS_TOKEN_ID,),
            adds_bos=False,
            num_parameters=0,
        )
    )


def _fingerprint(tokenizer: str, dtype: str) -> str:
    document = {"config": repr(_CONFIG), "template": _CHAT_TEMPLATE, "dtype": dtype}
    text = json.dumps(document, sort_keys=True) + tokenizer
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tokenizer() -> Tokenizer:
    """Byte-level without merges: "é" is two tokens, so the incremental detokeniser has work."""
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's byte-level vocabularies."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, NUM_BYTES)}
    hidden = [byte for byte in range(NUM_BYTES) if byte not in shown]
    return [
        chr(byte) if byte in shown else chr(NUM_BYTES + hidden.index(byte))
        for byte in range(NUM_BYTES)
    ]
