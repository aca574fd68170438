"""Where prepared folders are kept, and how a source file is recognised without hashing it again.

    <root>/models/<name>-<digest>-<dtype>/    complete prepared folders
    <root>/models/.partial-*/                 being written; stale ones are removed after a day
    <root>/digests/<path hash>.json           content digest of a source file, by size and times

A folder gets its final name by one rename when it is complete, so a reader never sees half of it;
of two processes that prepare the same model, the second throws its own copy away. Not covered:
an upper bound on the cache's size.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.errors import ModelFileError
from pdserve.log import event_log

logger = event_log(__name__)

# A file changed this recently might change again within the resolution of its timestamps.
_SETTLED_AFTER_S = 2.0
_PARTIAL_PREFIX = ".partial-"
_PARTIAL_LIFETIME_S = 24 * 3600.0
_READ_BYTES = 1 << 22


class ModelCache:
    """The prepared folders under one root. Several processes may use the same root at once."""

    def __init__(self, root: Path) -> None:
        self._models = root / "models"
        self._digests = root / "digests"
        try:
            self._models.mkdir(parents=True, exist_ok=True)
            self._digests.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"model cache {root}: cannot be written ({error}); set PDSERVE_CACHE"
            ) from error

    def folder_of(self, name: str, digest: str, dtype: str) -> Path:
        """Where the prepared folder is, or will be."""
        safe_name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
        return self._models / f"{safe_name}-{digest[:12]}-{dtype}"

    @contextmanager
    def partial_folder(self) -> Iterator[Path]:
        """An empty folder on the same file system; removed at the end unless ``install``ed."""
        self._remove_stale()
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL_PREFIX, dir=self._models))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def install(self, partial: Path, target: Path) -> None:
        """Give a complete folder its name; keeps what is there if another process was faster."""
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            logger.info("prepared_elsewhere", folder=target)

    def digest_of(self, paths: tuple[Path, ...], salt: str) -> str:
        """Digest over names and contents of the files, and ``salt``."""
        whole = hashlib.blake2b(salt.encode(), digest_size=16)
        for path in paths:
            whole.update(f"\n{path.name} {self._file_digest(path)}".encode())
        return whole.hexdigest()

    def _file_digest(self, path: Path) -> str:
        try:
            status = path.stat()
            stamp: list[str | int] = [
                str(path),
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
            ]
            path_hash = hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()
            memory = self._digests / f"{path_hash}.json"
            known = _read_memory(memory, stamp)
            if known is not None:
                return known
            digest = _hash_file(path)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error}") from error
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_AFTER_S:
            _write_memory(memory, stamp, digest)
        return digest

    def _remove_stale(self) -> None:
        """What a killed process left behind."""
        oldest = time.time() - _PARTIAL_LIFETIME_S
        for folder in self._models.glob(_PARTIAL_PREFIX + "*"):
            try:
                is_stale = folder.stat().st_mtime < oldest
            except FileNotFoundError:
                continue  # another process just finished it
            if is_stale:
                shutil.rmtree(folder, ignore_errors=True)


def _read_memory(memory: Path, stamp: list[str | int]) -> str | None:
    """The remembered digest if the file still has the same size and times."""
    try:
        document = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("stamp") != stamp:
        return None
    digest = document.get("digest")
    return digest if isinstance(digest, str) else None


def _write_memory(memory: Path, stamp: list[str | int], digest: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
        json.dump({"stamp": stamp, "digest": digest}, file)
    Path(file.name).replace(memory)


def _hash_file(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
