"""Models named by their id on the Hugging Face hub, through ``huggingface_hub``.

    Qwen/Qwen3-0.6B                         the files of a Hugging Face folder
    Qwen/Qwen3-0.6B@main                    of one branch, tag or commit
    Qwen/Qwen3-0.6B-GGUF/x-Q8_0.gguf        one GGUF file (all its parts, if it has parts)

Cache, endpoint, token and offline mode are the library's own (HF_HOME, HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE). What is in the cache and current is not fetched again; without a network the cache
serves what it holds complete. Knows nothing of what the files mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pdserve.errors import ModelFileError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>[^@\s]+))?"
)
_PART_NUMBER = re.compile(r"-\d{5}(-of-\d{5}\.gguf)$")
_FOLDER_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "model*.safetensors", "model.safetensors.index.json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HubId:
    repo: str  # owner/name
    file: str | None = None  # of a GGUF file, within the repository
    revision: str | None = None  # None: the main branch


def parse_hub_id(model: str) -> HubId | None:
    """None for what cannot be one, a path for instance."""
    found = _HUB_ID.fullmatch(model)
    return None if found is None else HubId(found["repo"], found["file"], found["revision"])


def fetch_from_hub(hub_id: HubId) -> Path:
    """The folder, or the GGUF file, in the library's cache; downloaded now if it is not there.

    Raises:
        ModelFileError: no such model, no permission, no network and nothing in the cache; says
            which and what to do.
    """
    from huggingface_hub import errors, snapshot_download

    patterns = list(_FOLDER_FILES)
    if hub_id.file is not None:
        patterns = [_PART_NUMBER.sub(r"-*\1", hub_id.file)]
    where = f"model {hub_id.repo!r} on the hub"
    try:
        folder = Path(
            snapshot_download(hub_id.repo, revision=hub_id.revision, allow_patterns=patterns)
        )
    except errors.GatedRepoError as error:
        raise ModelFileError(
            f"{where}: its owner grants access one by one; ask there, then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFileError(f"{where}: not there, or private (then set HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        raise ModelFileError(f"{where}: no revision {hub_id.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelFileError(
            f"{where}: neither reached nor whole in the cache ({_first_line(error)}); fetch it "
            "where there is a network, or give a folder or a .gguf file"
        ) from error
    # HTTPError: of whichever HTTP client the library uses.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise ModelFileError(f"{where}: cannot be fetched: {_first_line(error)}") from error
    wanted = folder / (hub_id.file or "config.json")
    if not wanted.is_file():
        raise ModelFileError(
            f"{where}: no {wanted.name} in it; a GGUF file is named as OWNER/NAME/FILE.gguf"
        )
    return folder if hub_id.file is None else wanted


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
