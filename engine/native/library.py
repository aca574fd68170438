"""The C library as Python sees it: the structs of native.h and typed entry points.

A change in native.h is a change here. Knows nothing of models or files.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from pdserve.errors import ConfigError

PHASES = ("norm", "qkv", "rope", "attention", "o", "gate_up", "down", "lm_head")


class Linear(ctypes.Structure):
    _fields_ = (
        ("panels", c_void_p), ("outputs", c_int64), ("inputs", c_int64), ("is_int8", c_int64),
    )  # fmt: skip


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Linear), ("o", Linear), ("gate_up", Linear), ("down", Linear),
        ("input_norm", c_void_p), ("post_norm", c_void_p), ("qkv_bias", c_void_p),
        ("q_norm", c_void_p), ("k_norm", c_void_p),
    )  # fmt: skip


class Model(ctypes.Structure):
    _fields_ = (
        ("hidden", c_int64), ("intermediate", c_int64), ("num_layers", c_int64),
        ("num_heads", c_int64), ("num_kv_heads", c_int64), ("head_dim", c_int64),
        ("vocab", c_int64), ("block_size", c_int64),
        ("rms_norm_eps", c_float), ("score_scale", c_float),
        ("layers", POINTER(Layer)), ("lm_head", Linear),
        ("norm", c_void_p), ("embed", c_void_p), ("embed_values", c_void_p),
        ("embed_scales", c_void_p), ("cos", c_void_p), ("signed_sin", c_void_p),
        ("kv", c_void_p),
    )  # fmt: skip


class Step(ctypes.Structure):
    _fields_ = (
        ("num_tokens", c_int64), ("num_rows", c_int64), ("num_sampled", c_int64),
        ("token_ids", c_void_p), ("first", c_void_p), ("start", c_void_p), ("count", c_void_p),
        ("tables", c_void_p), ("table_of", c_void_p), ("sampled", c_void_p), ("logits", c_void_p),
        ("best", c_void_p),
    )  # fmt: skip


class Library:
    """The loaded library. Calls release the interpreter lock."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: the file cannot be loaded."""
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise ConfigError(f"native: {path}: {error}") from error
        self.packed_words = _entry(library, "pd_packed_words", c_int64, c_int64, c_int64)
        self.panel_width = _entry(library, "pd_panel_width", c_int64)
        self.pack = _entry(library, "pd_pack", None, c_void_p, c_int64, c_int64, c_int, c_void_p)
        self.packed_int8_words = _entry(library, "pd_packed_int8_words", c_int64, c_int64, c_int64)
        self.pack_int8 = _entry(
            library, "pd_pack_int8", None, c_void_p, c_void_p, c_int64, c_int64, c_int, c_void_p
        )
        self.multiply = _entry(
            library, "pd_multiply", c_int, POINTER(Linear), c_void_p, c_int64, c_void_p
        )
        self.open = _entry(library, "pd_open", c_void_p, POINTER(Model), c_int)
        self.close = _entry(library, "pd_close", None, c_void_p)
        self.forward = _entry(library, "pd_forward", c_int, c_void_p, POINTER(Step))
        self.phase_seconds = _entry(library, "pd_phase_seconds", None, c_void_p, POINTER(c_double))
        self.instructions: str = _entry(library, "pd_instructions", c_char_p)().decode()


def _entry(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function
