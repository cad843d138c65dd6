"""How far a command is with many files: a bar on a terminal, nothing elsewhere."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO

_REDRAW_SECONDS = 0.1
_ERASE = "\r\x1b[K"


def line_of(done: int, failed: int, total: int, seconds: float, columns: int) -> str:
    """A bar, how many of how many, the rate and the time left; at most `columns` wide."""
    rate = done / seconds if seconds > 0 else 0.0
    left = clock((total - done) / rate) if rate else "--:--"
    words = f" {done}/{total}  {rate:.1f}/s  {left} left" + (f"  {failed} not completed" if failed else "")
    room = min(columns - len(words) - 3, 40)
    if room < 5:
        return words.strip()[: max(columns - 1, 0)]
    filled = room * done // max(total, 1)
    return f"[{'#' * filled}{'.' * (room - filled)}]{words}"


def clock(seconds: float) -> str:
    """A time left, as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(statuses: Sequence[str], seconds: float) -> str:
    """How many ended how, and how fast."""
    kinds = ", ".join(f"{count} {status}" for status, count in sorted(Counter(statuses).items()))
    return (
        f"{len(statuses)} evaluations: {kinds or 'none'}; {seconds:.1f} s, {len(statuses) / max(seconds, 1e-3):.1f}/s"
    )


class Progress:
    """Counts, and draws where somebody watches."""

    def __init__(
        self, total: int, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic, *, shown: bool = True
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._total = total
        self._began = now()
        self._drawn_at: float | None = None
        self._shown = shown and self._stream.isatty()
        self.done = 0
        self.failed = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._now() - self._began

    def count(self, *, completed: bool) -> None:
        """One more has ended."""
        self.done += 1
        self.failed += not completed

    def draw(self) -> None:
        """Show where things are, if that is not too soon."""
        now = self._now()
        if not self._shown or (self._drawn_at is not None and now - self._drawn_at < _REDRAW_SECONDS):
            return
        self._drawn_at = now
        columns = shutil.get_terminal_size().columns
        self._stream.write(_ERASE + line_of(self.done, self.failed, self._total, self.seconds, columns))
        self._stream.flush()

    def clear(self) -> None:
        """Make room for a line of output, or leave the terminal as it was."""
        if self._drawn_at is not None:
            self._stream.write(_ERASE)
            self._stream.flush()
            self._drawn_at = None
