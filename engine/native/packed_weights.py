"""Linear weights in the kernels' own layout, one copy for all workers of a host.

The packed weights lie beside weights.bin in the prepared folder, are made by the first worker that
needs them and mapped by all. Where the folder cannot be written they are packed into memory of the
worker's own. They are mapped on huge pages where that can be had (file_pages.py). Knows the order
of tensors in the file, not how they are used.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.modelfiles.tensor_plan import SCALES
from engine.native.file_pages import address_of, map_file
from engine.native.library import Library, Linear
from pdserve.log import event_log
from pdserve.prepared import PreparedModel

logger = event_log(__name__)

LAYOUT_VERSION = 1
GATED = "gate_up"  # its two halves are interleaved
_ALIGNMENT = 64


class PackedWeights:
    """``linear(name)`` for every weight in ``names``; the memory lives as long as this object."""

    def __init__(
        self,
        library: Library,
        prepared: PreparedModel,
        weights: Mapping[str, torch.Tensor],
        names: tuple[str, ...],
    ) -> None:
        self._library = library
        self._weights = {name: weights[name] for name in names}
        self._scales = {name: weights[name + SCALES] for name in names if name + SCALES in weights}
        self._offsets: dict[str, int] = {}
        self._size = 0
        for name, weight in self._weights.items():
            self._offsets[name] = self._size
            words = library.packed_int8_words if name in self._scales else library.packed_words
            num_bytes = 4 * words(*weight.shape)
            self._size += num_bytes + -num_bytes % _ALIGNMENT
        width = library.panel_width()
        path = prepared.folder / f"panels{LAYOUT_VERSION}-{prepared.dtype}-{width}.bin"
        self._mapping = self._map(path) or self._make_file(path) or self._pack_privately()
        self._address = address_of(self._mapping)

    def linear(self, name: str) -> Linear:
        outputs, inputs = self._weights[name].shape
        is_int8 = int(name in self._scales)
        return Linear(self._address + self._offsets[name], outputs, inputs, is_int8)

    def _map(self, path: Path) -> mmap.mmap | None:
        """The file, mapped whole; None if it is absent or of another size."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self._size:
                    return None
                mapped = map_file(file.fileno(), self._size)
                logger.info("weights_mapped", num_bytes=self._size, huge_bytes=mapped.huge_bytes)
                return mapped.mapping
        except FileNotFoundError:
            return None

    def _make_file(self, path: Path) -> mmap.mmap | None:
        """The file made under another name and renamed, so that nobody maps half of it."""
        logger.info("weights_packing", num_bytes=self._size, file=path)
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".panels-", delete=False) as f:
                partial = Path(f.name)
                try:
                    f.truncate(self._size)
                    with mmap.mmap(f.fileno(), self._size) as mapping:
                        self._pack_into(mapping)
                    os.fsync(f.fileno())  # only clean pages can be read again as huge ones
                    partial.replace(path)
                except BaseException:
                    partial.unlink()
                    raise
        except OSError as error:
            logger.warning("weights_not_shared", file=path, problem=str(error))
            return None
        return self._map(path)

    def _pack_privately(self) -> mmap.mmap:
        mapping = mmap.mmap(-1, self._size)
        self._pack_into(mapping)
        return mapping

    def _pack_into(self, mapping: mmap.mmap) -> None:
        address = address_of(mapping)
        for name, offset in self._offsets.items():
            weight = self._weights[name].contiguous()
            outputs, inputs = weight.shape
            is_gated = int(name.endswith(GATED))
            if name in self._scales:
                scales = self._scales[name].contiguous()
                self._library.pack_int8(
                    weight.data_ptr(), scales.data_ptr(), outputs, inputs, is_gated,
                    address + offset,
                )  # fmt: skip
            else:
                self._library.pack(weight.data_ptr(), outputs, inputs, is_gated, address + offset)
