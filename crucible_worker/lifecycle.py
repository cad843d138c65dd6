"""From signals to stages: drain, cancel, exit. The main thread waits here; the slots and deliveries work elsewhere."""

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crucible_worker.errors import ExitCode

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
_TICK = 0.5
# After the last task has ended, for results that are safe on disk if the queue does not take them.
DELIVER_SECONDS = 10.0
# For running tasks to end after they were told to; past it the daemon hangs, and the journal settles them.
CANCEL_SECONDS = 30.0


class Log(Protocol):
    """Structured log lines."""

    def info(self, event: str, **values: object) -> object:
        """Something happened."""

    def error(self, event: str, **values: object) -> object:
        """Something was given up."""


def hold_signals() -> None:
    """Block the signals of this worker in this thread and all that it starts; `Stages` picks them up in turn.

    Early, before slow imports: a signal that comes too soon is then kept, not lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def return_memory() -> None:
    """Have the C library give memory back that output has taken: by default it keeps some for each thread, for ever.

    Values of malloc.h (mallopt(3)). A libc without mallopt goes without.
    """
    import ctypes

    arena_max, mmap_threshold, trim_threshold = -8, -3, -1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(arena_max, 2)
        mallopt(mmap_threshold, 1 << 17)
        mallopt(trim_threshold, 1 << 17)


def next_signal(seconds: float) -> int | None:
    """The next signal to this worker within `seconds`, or None."""
    info = signal.sigtimedwait(SIGNALS, seconds)
    return info.si_signo if info else None


@dataclass(slots=True)
class Stages:
    """How far a shutdown has come. `drain` stops claiming, `cancel` ends running tasks."""

    drain: threading.Event = field(default_factory=threading.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    level: int = 0

    def advance(self, number: int) -> None:
        """Take one signal into account: TERM and INT go one stage further, QUIT straight to the second."""
        self.level = max(self.level + 1, 2) if number == signal.SIGQUIT else self.level + 1
        self.drain.set()
        if self.level >= 2:
            self.cancel.set()


class Lifecycle:
    """Watches over a worker's threads from start to exit."""

    def __init__(
        self,
        *,
        stages: Stages,
        slots: Sequence[threading.Thread],
        delivered: Callable[[], bool],
        durable: bool,
        drain_timeout: float,
        stalled: Callable[[], Iterable[str]],
        reload: Callable[[], None],
        beat: Callable[[], None],
        log: Log,
        wait_signal: Callable[[float], int | None] = next_signal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delivered` tells whether nothing waits to be said; `durable` whether it would survive our exit.

        `drain_timeout` in seconds, 0 for ever: when it is over, running tasks are cancelled. `beat` is called about
        twice a second while nothing is stalled, to the end.
        """
        self._stages = stages
        self._slots = slots
        self._delivered = delivered
        self._durable = durable
        self._drain_timeout = drain_timeout
        self._stalled = stalled
        self._reload = reload
        self._beat = beat
        self._log = log
        self._wait_signal = wait_signal
        self._clock = clock
        self._drain_began = 0.0

    def watch(self) -> int:
        """Return the exit code, once a shutdown has come to its end."""
        while not self._stages.drain.is_set():
            self._take_signal()
            if self._has_stalled():
                return ExitCode.STALLED
            self._beat()
        self._drain_began = self._clock()
        code = self._settle_tasks()
        return self._deliver_rest() if code is None else code

    def _has_stalled(self) -> bool:
        late = list(self._stalled())
        if late:
            self._log.error("worker_stalled", reasons=late, threads=thread_dump())
        return bool(late)

    def _take_signal(self) -> None:
        number = self._wait_signal(_TICK)
        if number is None:
            return
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            self._log.info("reloading", signal=name)
            self._reload()
            return
        self._stages.advance(number)
        stage = ("drain", "cancel", "exit")[min(self._stages.level, 3) - 1]
        self._log.info("shutdown_requested", signal=name, stage=stage)

    def _settle_tasks(self) -> int | None:
        """Wait for the slots. Returns an exit code where there is no point in waiting for deliveries then."""
        cancelled: float | None = None
        while any(slot.is_alive() for slot in self._slots):
            self._take_signal()
            if self._stages.level >= 3:
                return ExitCode.INTERRUPTED
            if self._has_stalled():
                return ExitCode.STALLED
            self._beat()
            if self._drain_is_late() and not self._stages.cancel.is_set():
                self._log.error("drain_timeout", seconds=self._drain_timeout)
                self._stages.cancel.set()
            if self._stages.cancel.is_set():
                cancelled = self._clock() if cancelled is None else cancelled
                if self._clock() - cancelled > CANCEL_SECONDS:
                    self._log.error("cancel_timeout", seconds=CANCEL_SECONDS, threads=thread_dump())
                    break
        return None

    def _drain_is_late(self) -> bool:
        return 0 < self._drain_timeout < self._clock() - self._drain_began

    def _deliver_rest(self) -> int:
        """Wait for the deliveries, while there is a point in it."""
        began, level = self._clock(), self._stages.level
        while not self._delivered():
            over = self._clock() - began > DELIVER_SECONDS
            # What is only in memory is lost with us: then it takes a drain timeout, or a further signal, to give up.
            if (over and (self._durable or self._drain_is_late())) or self._stages.level > max(level, 1):
                return ExitCode.UNDELIVERED
            self._beat()
            self._take_signal()
        return ExitCode.OK


def thread_dump() -> list[str]:
    """Where each thread is, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        f"{names.get(ident, ident)}: " + " > ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_stack(frame)[-8:])
        for ident, frame in sys._current_frames().items()  # noqa: SLF001 - the documented way to see all threads
    ]
