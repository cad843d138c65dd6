"""Whether another task may be claimed: an engine has to work, and what becomes of the task has to fit on the disk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from crucible_worker.errors import JournalError
from crucible_worker.journal import Load
from crucible_worker.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait in the journal: in bytes, entries and seconds, and the bytes to be left free on its disk."""

    size: int
    entries: int
    age: float
    reserve: int


class Log(Protocol):
    """Structured log lines."""

    def info(self, event: str, **values: object) -> object:
        """Something happened."""

    def warning(self, event: str, **values: object) -> object:
        """Something is not as it should be."""


def no_room(load: Load, free: int | None, bounds: Bounds, now: float) -> str | None:
    """Why nothing more may go into the journal, if so. `free` is None where there is no disk; `now` is Unix time."""
    if load.entries >= bounds.entries:
        return f"{load.entries} results wait or were refused, of {bounds.entries} that may; see 'journal list'"
    if load.size >= bounds.size:
        return f"the journal holds {load.size} bytes of {bounds.size}; see 'journal list'"
    if load.oldest is not None and now - load.oldest >= bounds.age:
        return f"a result has waited for {now - load.oldest:.0f} s, longer than {bounds.age:.0f}; see 'journal list'"
    if free is not None and free < bounds.reserve:
        return f"the disk of the state directory has {free} bytes left, less than the {bounds.reserve} of disk_reserve"
    return None


class Admission:
    """Asked before each poll. Says in the log, and to the readiness probe, when and why claiming stops."""

    def __init__(
        self,
        *,
        load: Callable[[], Load],
        free: Callable[[], int | None],
        bounds: Bounds,
        engines: Callable[[], bool],
        clock: Callable[[], float],
        vitals: Vitals,
        log: Log,
    ) -> None:
        """`engines` tells whether one works; `clock` is Unix time."""
        self._load = load
        self._free = free
        self._bounds = bounds
        self._engines = engines
        self._clock = clock
        self._vitals = vitals
        self._log = log

    def may_claim(self) -> bool:
        """Whether a task that came now could be run, and its result kept."""
        return self._has_room() and self._engines()

    def _has_room(self) -> bool:
        try:
            reason = no_room(self._load(), self._free(), self._bounds, self._clock())
        except (JournalError, OSError) as error:
            reason = f"the state directory cannot be read: {error}"
        if self._vitals.trouble("room", reason):
            if reason:
                self._log.warning("claiming_stopped", reason=reason)
            else:
                self._log.info("claiming_resumed")
        return reason is None
