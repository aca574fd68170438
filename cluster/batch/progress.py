"""How far a batch is: a bar that is drawn over itself on a terminal, else a line now and then."""

from __future__ import annotations

import math
from typing import TextIO

from cluster.batch.summary import Tally
from pdserve.clock import Clock

_BAR_CELLS = 24
_REDRAW_S = 0.1


class Progress:
    """Tell it whenever a line has ended; it says no more than there is to see."""

    def __init__(self, tally: Tally, out: TextIO, clock: Clock, pause_s: float) -> None:
        self._tally = tally
        self._out = out
        self._clock = clock
        self._is_terminal = out.isatty()
        self._pause_s = _REDRAW_S if self._is_terminal else pause_s
        self._is_drawn = False
        self.start()

    def start(self) -> None:
        """The first line is being sent: pace is counted from here."""
        self._started_s = self._clock.now()
        self._next_s = self._started_s + self._pause_s

    @property
    def elapsed_s(self) -> float:
        return self._clock.now() - self._started_s

    def advanced(self) -> None:
        """A line has ended."""
        now_s = self._clock.now()
        if now_s >= self._next_s:
            self._next_s = now_s + self._pause_s
            self._show()

    def clear(self) -> None:
        """Leave the terminal's line to somebody else."""
        if self._is_drawn:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._is_drawn = False

    def finish(self) -> None:
        """Show where it ended."""
        self._show()
        if self._is_drawn:
            self._out.write("\n")
            self._is_drawn = False

    def _show(self) -> None:
        text = progress_text(self._tally, self.elapsed_s)
        if self._is_terminal:
            self._out.write(f"\r\x1b[K{text}")
            self._is_drawn = True
        else:
            self._out.write(text + "\n")
        self._out.flush()


def progress_text(tally: Tally, elapsed_s: float) -> str:
    """One line, without its end. Time left by this run's own pace."""
    filled = _BAR_CELLS * tally.num_ended // tally.num_lines
    bar = "#" * filled + "." * (_BAR_CELLS - filled)
    parts = [
        f"[{bar}] {tally.num_ended:,}/{tally.num_lines:,}"
        f" {100 * tally.num_ended / tally.num_lines:.0f} %"
    ]
    if tally.num_failed:
        parts.append(f"{tally.num_failed:,} failed")
    if elapsed_s > 0 and tally.num_answered:
        parts.append(f"{tally.num_answered / elapsed_s:,.1f} requests/s")
        parts.append(f"{tally.num_generated_tokens / elapsed_s:,.0f} tokens/s")
    ended_now = tally.num_ended - tally.num_done_before
    if ended_now and (left := tally.num_lines - tally.num_ended):
        parts.append(f"{_duration(left * elapsed_s / ended_now)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
