"""What the worker knows of its own health: who must move by when, what it runs, whom it cannot reach."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_RECENT = 20


@dataclass(slots=True)
class _Slot:
    doing: str
    since: float
    due: float
    eval_id: str | None = None
    engine: str | None = None


class Vitals:
    """Thread-safe notes of the slots and the adapters, read by the health endpoint. Times by a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: dict[int, _Slot] = {}
        self._troubles: dict[str, str] = {}
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=_RECENT)
        self._last_poll: float | None = None
        self._said: set[str] = set()
        self._collapsed: list[str] = []

    def expect(
        self, slot: int, doing: str, seconds: float, eval_id: str | None = None, engine: str | None = None
    ) -> None:
        """Slot number `slot` does something now that has ended after `seconds`, or else it is stalled."""
        now = self._clock()
        with self._lock:
            self._slots[slot] = _Slot(doing, now, now + seconds, eval_id, engine)

    def leave(self, slot: int) -> None:
        """A slot has ended for good."""
        with self._lock:
            self._slots.pop(slot, None)

    def polled(self) -> None:
        """The queue has answered a poll."""
        with self._lock:
            self._last_poll = self._clock()

    def trouble(self, what: str, words: str | None) -> bool:
        """Note what keeps the worker from being ready, or None that it is over. Returns whether that is news."""
        with self._lock:
            known = self._troubles.get(what)
            if words is None:
                self._troubles.pop(what, None)
            else:
                self._troubles[what] = words
            return (known is None) != (words is None)

    def has_trouble(self, what: str) -> bool:
        """Whether a trouble is noted and not over."""
        with self._lock:
            return what in self._troubles

    def first_time(self, what: str) -> bool:
        """Whether this is asked for the first time: for what is said once."""
        with self._lock:
            new = what not in self._said
            self._said.add(what)
            return new

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Remember a verdict for the status page."""
        with self._lock:
            self._recent.appendleft(summary)

    def collapsed(self, words: str) -> None:
        """Something that the worker cannot do without has ended, and will not come back."""
        with self._lock:
            self._collapsed.append(words)

    def stalled(self) -> list[str]:
        """What has collapsed, or has not ended in its time, one sentence each."""
        now = self._clock()
        with self._lock:
            late = [(number, slot) for number, slot in self._slots.items() if now > slot.due]
            collapsed = list(self._collapsed)
        return collapsed + [
            f"slot {number} has been {slot.doing} for {now - slot.since:.0f} s" for number, slot in late
        ]

    def troubles(self) -> list[str]:
        """Why the worker is not ready, one sentence each."""
        with self._lock:
            return list(self._troubles.values())

    def last_poll_age(self) -> float | None:
        """Seconds since the queue last answered a poll; None if it never has."""
        with self._lock:
            return None if self._last_poll is None else round(self._clock() - self._last_poll, 1)

    def slots(self) -> list[dict[str, Any]]:
        """What each slot does, and for how many seconds."""
        now = self._clock()
        with self._lock:
            return [
                {
                    "slot": number,
                    "doing": slot.doing,
                    "seconds": round(now - slot.since, 1),
                    "eval_id": slot.eval_id,
                    "engine": slot.engine,
                }
                for number, slot in sorted(self._slots.items())
            ]

    def recent(self) -> list[Mapping[str, Any]]:
        """The last verdicts, newest first."""
        with self._lock:
            return list(self._recent)
