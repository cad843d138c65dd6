"""What the last hour was like, minute by minute. A fixed number of minutes, each of a fixed size at most."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from crucible_worker.model import Reason

MINUTES = 60
DURATIONS = 512  # kept of one minute, the newest
COMPLETED, FAILED, LIMITED, UNJUDGED = "completed", "failed", "limited", "no verdict"
KINDS = (COMPLETED, FAILED, LIMITED, UNJUDGED)
_KIND_OF = {
    Reason.EXITED: COMPLETED,
    Reason.EXITED_NONZERO: FAILED,
    Reason.SIGNALED: FAILED,
    Reason.TIMEOUT: LIMITED,
    Reason.OUT_OF_MEMORY: LIMITED,
    Reason.OUTPUT_LIMIT: LIMITED,
    Reason.PROCESS_LIMIT: LIMITED,
}


@dataclass(slots=True)
class Minute:
    """Tasks that ended within one minute: how many of each kind, and the seconds that they took."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=DURATIONS))

    @property
    def total(self) -> int:
        """Tasks of every kind."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """The least duration that this share of the tasks did not exceed (0.5 is the median); None without tasks."""
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


class History:
    """The last MINUTES minutes. Thread-safe; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._minutes: dict[int, Minute] = {}

    def add(self, reason: Reason, seconds: float) -> None:
        """A task has ended now, after so many seconds."""
        with self._lock:
            now = self._forget()
            minute = self._minutes.setdefault(now, Minute())
            minute.counts[_KIND_OF.get(reason, UNJUDGED)] += 1
            minute.seconds.append(seconds)

    def minutes(self) -> list[Minute]:
        """MINUTES of them, oldest first; the last is the one that runs."""
        with self._lock:
            now = self._forget()
            known = {at: Minute(dict(m.counts), m.seconds.copy()) for at, m in self._minutes.items()}
        return [known.get(at, Minute()) for at in range(now - MINUTES + 1, now + 1)]

    def _forget(self) -> int:
        now = int(self._clock() // 60)
        for at in [at for at in self._minutes if at <= now - MINUTES]:
            del self._minutes[at]
        return now
