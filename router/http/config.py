"""Limits and waits of the HTTP face. The router's options (router/config.py) set some of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Times in seconds.

    ``header_timeout_s``: for the first request of a connection; ``keep_alive_s``: an idle
    connection between requests; ``linger_s``, ``max_linger_bytes``: how much of a refused body is
    still taken in (and dropped), so that its sender gets to read the refusal; ``stalled_write_s``:
    a client that takes nothing of its stream. ``cors_origins``: web pages of these origins may call
    the service from a browser; "*" is any, none allows no page.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    body_timeout_s: float = 30.0
    header_timeout_s: float = 30.0
    keep_alive_s: int = 75
    linger_s: float = 5.0
    max_linger_bytes: int = 64 * 1024 * 1024
    stalled_write_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
