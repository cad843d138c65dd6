"""The slots of a worker: each polls, and sees through what it has claimed. Knows no queue and no engine."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from crucible_worker import backoff
from crucible_worker.errors import KeyRefusedError, RejectedError, RetryError
from crucible_worker.evaluation import Evaluations
from crucible_worker.journal import Claim
from crucible_worker.model import InvalidTaskError, Task
from crucible_worker.vitals import Vitals


class Queue(Protocol):
    """Where tasks come from."""

    poll_seconds: float

    def claim(self) -> Task | None:
        """The next task, if there is one."""


class Log(Protocol):
    """Structured log lines."""

    def info(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something happened."""

    def warning(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something is not as it should be."""


class Metrics(Protocol):
    """What is counted."""

    def polled(self, outcome: str, seconds: float) -> None:
        """A poll ended: task, empty, error or rejected."""

    def queue_connection_failed(self) -> None:
        """The queue could not be reached, or made no sense."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Pauses between polls, in seconds."""

    interval: float = 1.0
    step: float = 5.0
    longest: float = 30.0


class Worker:
    """Sees tasks through, one at a time in each slot."""

    def __init__(
        self,
        *,
        queue: Queue,
        evaluations: Evaluations,
        may_claim: Callable[[], bool],
        reload_key: Callable[[], None],
        pace: Pace,
        vitals: Vitals,
        metrics: Metrics,
        log: Log,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`may_claim` tells whether a task could be run now."""
        self._queue = queue
        self._evaluations = evaluations
        self._may_claim = may_claim
        self._reload_key = reload_key
        self._pace = pace
        self._vitals = vitals
        self._metrics = metrics
        self._log = log
        self._jitter = jitter
        self._failures: dict[int, int] = {}
        self._earlier: deque[Claim] = deque()

    def take_over(self, claims: Iterable[Claim]) -> None:
        """What earlier lives have left running is seen through before anything is claimed."""
        self._earlier.extend(claims)

    def run(self, slot: int, drain: threading.Event) -> None:
        """Serve one slot until `drain` is set. A poll in flight, and its task, are brought to their end."""
        while not drain.is_set():
            pause = self.turn(slot)
            self._vitals.expect(slot, "waiting", pause + 60)
            drain.wait(pause)
        self._vitals.leave(slot)

    def turn(self, slot: int) -> float:
        """See through at most one task. Returns the seconds to wait before the next turn."""
        try:
            earlier = self._earlier.popleft()
        except IndexError:
            return self._claim(slot)
        if self._evaluations.resume(slot, earlier):
            return 0.0
        self._earlier.append(earlier)
        return self._pace.interval

    def _claim(self, slot: int) -> float:
        if not self._may_claim():
            return self._pace.interval
        began = time.monotonic()
        self._vitals.expect(slot, "polling", 3 * self._queue.poll_seconds)
        try:
            task = self._queue.claim()
        except (RetryError, KeyRefusedError, RejectedError) as error:
            return self._poll_failed(slot, error, time.monotonic() - began)
        except InvalidTaskError as error:
            self._poll_answered(slot, "task", time.monotonic() - began)
            self._evaluations.refuse(slot, error)
            return 0.0
        seconds = time.monotonic() - began
        self._poll_answered(slot, "empty" if task is None else "task", seconds)
        if task is None:
            return backoff.empty_pause(self._pace.interval, seconds, self._jitter())
        self._evaluations.process(slot, task)
        return 0.0

    def _poll_answered(self, slot: int, outcome: str, seconds: float) -> None:
        self._metrics.polled(outcome, seconds)
        self._vitals.polled()
        self._failures[slot] = 0
        if self._vitals.trouble("queue", None):
            self._log.info("queue_connection_restored")

    def _poll_failed(self, slot: int, error: Exception, seconds: float) -> float:
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        pause = backoff.poll_pause(failures, self._pace.step, self._pace.longest, self._jitter())
        pause = max(pause, getattr(error, "retry_after", None) or 0.0)
        self._metrics.polled("rejected" if isinstance(error, KeyRefusedError) else "error", seconds)
        self._metrics.queue_connection_failed()
        self._vitals.trouble("queue", f"the queue {error}")
        event = "queue_connection_failed"
        if isinstance(error, KeyRefusedError):
            event = "queue_key_refused"
            self._reload_key()
        self._log.warning(event, error=f"the queue {error}", failures=failures, retry_in_seconds=round(pause, 1))
        return pause
