"""The life of a task: claim, run, record, deliver. Knows no queue, no engine and no disk, only what it asks of them."""

import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from crucible_worker import backoff, outbox
from crucible_worker.errors import JournalError, KeyRefusedError, RejectedError, RetryError, TaskError
from crucible_worker.model import Event, InvalidTaskError, Limits, Reason, Result, Run, Task
from crucible_worker.vitals import Vitals

# Beyond a task's own timeout: two engines' boot, kill and removal, each with the daemon's own deadlines.
ENGINE_SECONDS = 300.0
_DISK_PAUSE = 2.0
_T = TypeVar("_T")


class Queue(Protocol):
    """Where tasks come from."""

    poll_seconds: float

    def claim(self) -> Task | None:
        """The next task, if there is one."""


class Witness(Protocol):
    """Who is told of a run as it goes."""

    def created(self, container: str) -> None:
        """A sandbox is there, and nothing has been heard from it."""

    def heard(self, data: bytes) -> None:
        """Bytes of its attached stream."""

    def started(self, container: str) -> None:
        """The code has started."""


class Engines(Protocol):
    """Where tasks run."""

    def choose(self, requested: str) -> str:
        """The engine that is to run a task. Raises TaskError."""

    def probe(self, name: str) -> bool:
        """Whether an engine works now, tried."""

    def run(self, name: str, task: Task, limits: Limits, cancel: threading.Event, witness: Witness) -> Run:
        """Run a task. Raises TaskError."""


class Record(Protocol):
    """What is on disk before it is said."""

    def claim(self, eval_id: str, lease: str | None, engine: str, at: float) -> int:
        """Note a claim."""

    def settle(self, claim: int, kind: str, eval_id: str, body: Mapping[str, Any], at: float) -> None:
        """Replace a claim by what is to be said of it."""


class Log(Protocol):
    """Structured log lines, bound to a task where there is one."""

    def info(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something happened."""

    def warning(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something is not as it should be."""

    def error(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something was given up."""


class Metrics(Protocol):
    """What is counted."""

    def polled(self, outcome: str, seconds: float) -> None:
        """A poll ended: task, empty, error or rejected."""

    def queue_connection_failed(self) -> None:
        """The queue could not be reached, or made no sense."""

    def slot_taken(self) -> None:
        """A task begins."""

    def slot_freed(self) -> None:
        """A task has ended."""

    def task_finished(self, engine: str, reason: Reason, seconds: float, phases: Mapping[str, float]) -> None:
        """A task has ended; phases in seconds."""


@dataclass(frozen=True, slots=True)
class _Witness:
    started: Callable[[str], None]

    def created(self, container: str) -> None:
        """Not told yet."""

    def heard(self, data: bytes) -> None:
        """Kept by nobody yet."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Pauses between polls, in seconds."""

    interval: float = 1.0
    step: float = 5.0
    longest: float = 30.0


class Worker:
    """Runs tasks, one at a time in each slot."""

    def __init__(
        self,
        *,
        worker_id: str,
        queue: Queue,
        engines: Engines,
        may_claim: Callable[[], bool],
        record: Record,
        tell: Callable[[Event], None],
        deliver: Callable[[], None],
        reload_key: Callable[[], None],
        limits: Limits,
        timeout_max: float,
        pace: Pace,
        vitals: Vitals,
        metrics: Metrics,
        log: Log,
        task_context: Callable[[str, str], AbstractContextManager[None]],
        cancel: threading.Event,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`may_claim` tells whether a task could be run now.

        `tell` puts an event on its way, `deliver` says that a result waits; neither may block.
        `cancel` ends running tasks as `worker_shutdown`. `timeout_max` in seconds.
        """
        self._worker_id = worker_id
        self._queue = queue
        self._engines = engines
        self._may_claim = may_claim
        self._record = record
        self._tell = tell
        self._deliver = deliver
        self._reload_key = reload_key
        self._limits = limits
        self._timeout_max = timeout_max
        self._pace = pace
        self._vitals = vitals
        self._metrics = metrics
        self._log = log
        self._task_context = task_context
        self._cancel = cancel
        self._jitter = jitter
        self._failures: dict[int, int] = {}

    def run(self, slot: int, drain: threading.Event) -> None:
        """Serve one slot until `drain` is set. A poll in flight, and its task, are brought to their end."""
        while not drain.is_set():
            pause = self.turn(slot)
            self._vitals.expect(slot, "waiting", pause + 60)
            drain.wait(pause)
        self._vitals.leave(slot)

    def turn(self, slot: int) -> float:
        """Claim and run at most one task. Returns the seconds to wait before the next turn."""
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
            self._refuse(error)
            return 0.0
        seconds = time.monotonic() - began
        self._poll_answered(slot, "empty" if task is None else "task", seconds)
        if task is None:
            return backoff.empty_pause(self._pace.interval, seconds, self._jitter())
        self._process(slot, task)
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

    def _refuse(self, error: InvalidTaskError) -> None:
        """Something came that is no task. Tell the queue, where it can be told about which."""
        if error.eval_id is None:
            self._log.error("task_unreportable", error=str(error))
            return
        with self._task_context(error.eval_id, ""):
            claim = self._durably(lambda: self._record.claim(error.eval_id or "", None, "", time.time()))
            self._fail(claim, error.eval_id, None, TaskError(Reason.INVALID_TASK, str(error)), "", 0.0)

    def _process(self, slot: int, task: Task) -> None:
        limits = self._limits.for_task(task, self._timeout_max)
        self._vitals.expect(slot, "running", limits.timeout_seconds + ENGINE_SECONDS, task.eval_id, task.engine)
        self._metrics.slot_taken()
        lease = task.lease.id if task.lease else None
        began = time.monotonic()
        with self._task_context(task.eval_id, task.engine):
            claim = self._durably(lambda: self._record.claim(task.eval_id, lease, task.engine, time.time()))
            self._log.info("processing_task_started", language=task.language, timeout=limits.timeout_seconds)
            try:
                outcome = self._attempt(task, limits)
                if isinstance(outcome, Result):
                    self._complete(claim, task, outcome)
                else:
                    self._fail(claim, task.eval_id, task, outcome, task.engine, time.monotonic() - began)
            finally:
                self._metrics.slot_freed()

    def _attempt(self, task: Task, limits: Limits) -> Result | TaskError:
        """The result of a task, or why there is none."""
        try:
            return self._evaluate(task, limits)
        except TaskError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a defect of ours must neither lose the task nor stop the worker
            self._log.error("internal_error", error=f"{type(error).__name__}: {error}", exc_info=True)
            return TaskError(Reason.ENGINE_ERROR, f"internal error: {type(error).__name__}: {error}")

    def _evaluate(self, task: Task, limits: Limits) -> Result:
        started = dt.datetime.now(dt.UTC)
        engine, run = self._run_somewhere(task, limits)
        if run.verdict.reason is Reason.CANCELLED and self._cancel.is_set():
            raise TaskError(Reason.WORKER_SHUTDOWN, "the worker was told to stop before the code had ended")
        finished = dt.datetime.now(dt.UTC)
        return Result.of(
            task, run, engine=engine, limits=limits, started=started, finished=finished, worker_id=self._worker_id
        )

    def _run_somewhere(self, task: Task, limits: Limits) -> tuple[str, Run]:
        """Run a task on its engine, or on the one that stands in for it."""
        engine = self._choose(task)
        try:
            return engine, self._run_on(engine, task, limits)
        except TaskError as error:
            # The code has not started: where its engine has just broken, another may still run it.
            if error.reason is not Reason.ENGINE_UNAVAILABLE or self._engines.probe(engine):
                raise
        stand_in = self._choose(task)
        return stand_in, self._run_on(stand_in, task, limits)

    def _choose(self, task: Task) -> str:
        engine = self._engines.choose(task.engine)
        if engine != task.engine:
            self._log.warning("engine_fallback", requested_engine=task.engine, fallback_engine=engine)
        return engine

    def _run_on(self, engine: str, task: Task, limits: Limits) -> Run:
        def started(container: str) -> None:
            now = dt.datetime.now(dt.UTC)
            self._tell(outbox.running(task, limits, self._worker_id, container, now))

        return self._engines.run(engine, task, limits, self._cancel, _Witness(started))

    def _complete(self, claim: int, task: Task, result: Result) -> None:
        body = outbox.completion(task, result)
        self._durably(lambda: self._record.settle(claim, outbox.COMPLETE, task.eval_id, body, time.time()))
        self._deliver()
        self._tell(outbox.completed(result, dt.datetime.now(dt.UTC)))
        seconds = result.duration_ms / 1000
        phases = {name.removesuffix("_ms"): ms / 1000 for name, ms in result.phases.items()}
        self._metrics.task_finished(result.engine, result.reason, seconds, phases)
        self._note(task.eval_id, result.engine, result.status, result.reason, seconds)
        self._log.info(
            "task_completed_successfully",
            status=result.status,
            reason=result.reason,
            exit_code=result.exit_code,
            duration_ms=result.duration_ms,
            used_engine=result.engine,
        )

    def _fail(self, claim: int, eval_id: str, task: Task | None, error: TaskError, engine: str, seconds: float) -> None:
        body = outbox.failure(task, error.reason, str(error))
        self._durably(lambda: self._record.settle(claim, outbox.FAIL, eval_id, body, time.time()))
        self._deliver()
        self._tell(outbox.failed(eval_id, body, self._worker_id, dt.datetime.now(dt.UTC)))
        self._metrics.task_finished(engine, error.reason, seconds, {})
        self._note(eval_id, engine, "failed", error.reason, seconds)
        self._log.error("task_failed", reason=error.reason, error=str(error))

    def _note(self, eval_id: str, engine: str, status: str, reason: Reason, seconds: float) -> None:
        summary = {"eval_id": eval_id, "engine": engine, "status": status, "reason": reason, "seconds": seconds}
        self._vitals.finished(summary | {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})

    def _durably(self, write: "Callable[[], _T]") -> "_T":
        """Write to disk, trying for as long as that takes: until it is written, this slot claims nothing more."""
        while True:
            try:
                written = write()
            except JournalError as error:
                if self._vitals.trouble("disk", f"the state directory cannot be written: {error}"):
                    self._log.error("journal_write_failed", error=str(error))
                time.sleep(_DISK_PAUSE)
                continue
            if self._vitals.trouble("disk", None):
                self._log.info("journal_write_restored")
            return written
