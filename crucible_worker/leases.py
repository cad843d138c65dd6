"""Tasks that are held: their leases renewed, their cancellation heard. One thread, which no task can starve."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

from crucible_worker.errors import AlreadySettledError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.model import Lease

_IDLE_SECONDS = 5.0
# A queue without leases has to say so often in a row that it does not know a task, before that counts.
_UNKNOWN_TIMES = 2


class Queue(Protocol):
    """Whom the tasks belong to."""

    def renew(self, eval_id: str, lease: Lease) -> bool:
        """Renew a lease. Returns whether its task is to be cancelled. Raises AlreadySettledError where it is lost."""

    def knows(self, eval_id: str) -> bool:
        """Whether the queue still knows a task."""


class Log(Protocol):
    """Structured log lines."""

    def warning(self, event: str, **values: object) -> object:
        """Something is not as it should be."""


class Hold:
    """One task in our hands. As a cancellation, it is set when the task is to be ended, for whatever reason."""

    def __init__(self, eval_id: str, lease: Lease | None, shutdown: threading.Event, interval: float) -> None:
        self.eval_id = eval_id
        self.lease = lease
        self.interval = interval
        self.due = 0.0
        self.failures = 0
        self.unknown = 0
        self.cancelled = False
        self.lost = False
        self._shutdown = shutdown

    def is_set(self) -> bool:
        """Whether the task is to be ended."""
        return self.cancelled or self.lost or self._shutdown.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it is to be ended for the worker's sake alone."""
        return self._shutdown.is_set() and not self.cancelled and not self.lost


class Leases:
    """Holds tasks until their results are delivered. May be shared by threads."""

    def __init__(
        self,
        queue: Queue,
        shutdown: threading.Event,
        log: Log,
        cancel_poll: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`shutdown` ends all tasks. `cancel_poll`: every how many seconds to ask a queue without leases; 0 never."""
        self._queue = queue
        self._shutdown = shutdown
        self._log = log
        self._cancel_poll = cancel_poll
        self._clock = clock
        self._lock = threading.Lock()
        self._holds: list[Hold] = []
        self._wake = threading.Event()

    def hold(self, eval_id: str, lease: Lease | None) -> Hold:
        """Look after a task from now on. A lease is renewed at a third of its time, and again at the next third."""
        interval = lease.seconds / 3 if lease else self._cancel_poll
        hold = Hold(eval_id, lease, self._shutdown, interval)
        if interval:
            hold.due = self._clock() + interval
            with self._lock:
                self._holds.append(hold)
            self._wake.set()
        return hold

    def drop(self, hold: Hold) -> None:
        """A task is out of our hands."""
        with self._lock:
            if hold in self._holds:
                self._holds.remove(hold)

    def settled(self, eval_id: str, lease: str | None) -> None:
        """The queue has taken what was to be said about a task."""
        with self._lock:
            self._holds = [h for h in self._holds if h.eval_id != eval_id or (h.lease.id if h.lease else None) != lease]

    def run(self, stop: threading.Event) -> None:
        """Renew until `stop` is set."""
        while not stop.is_set():
            pause = self.turn()
            self._wake.wait(pause)
            self._wake.clear()

    def turn(self) -> float:
        """Renew what is due. Returns the seconds until the next is."""
        with self._lock:
            due = [hold for hold in self._holds if hold.due <= self._clock()]
        for hold in due:
            hold.due = self._clock() + hold.interval
            try:
                self._ask(hold)
            except (RetryError, KeyRefusedError, RejectedError) as error:
                # One beat that fails ends nothing: only the queue knows whom it has given the task to.
                hold.failures += 1
                if hold.failures == 1:
                    self._log.warning("heartbeat_failed", eval_id=hold.eval_id, error=f"the queue {error}")
            else:
                hold.failures = 0
        with self._lock:
            return max(min((h.due for h in self._holds), default=self._clock() + _IDLE_SECONDS) - self._clock(), 0.0)

    def _ask(self, hold: Hold) -> None:
        if hold.lease is None:
            hold.unknown = 0 if self._queue.knows(hold.eval_id) else hold.unknown + 1
            cancel = hold.unknown >= _UNKNOWN_TIMES
        else:
            try:
                cancel = self._queue.renew(hold.eval_id, hold.lease)
            except AlreadySettledError as error:
                self.drop(hold)
                hold.lost = True
                self._log.warning("lease_lost", eval_id=hold.eval_id, error=str(error))
                return
        if cancel and not hold.cancelled:
            hold.cancelled = True
            self._log.warning("task_cancelled", eval_id=hold.eval_id)
