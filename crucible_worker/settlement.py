"""What becomes of a task, put on disk before it is said: a verdict, a failure, or that somebody else is to have it."""

import datetime as dt
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from crucible_worker import outbox
from crucible_worker.errors import JournalError, TaskError
from crucible_worker.model import Event, Reason, Result
from crucible_worker.vitals import Vitals

_DISK_PAUSE = 2.0
_T = TypeVar("_T")


class Record(Protocol):
    """What is on disk before it is said."""

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

    def task_finished(self, engine: str, reason: Reason, seconds: float, phases: Mapping[str, float]) -> None:
        """A task has ended; phases in seconds."""


class Settlement:
    """Settles claims, and tells everybody who is told."""

    def __init__(
        self,
        *,
        worker_id: str,
        record: Record,
        tell: Callable[[Event], None],
        deliver: Callable[[], None],
        say: Callable[[str, str, Mapping[str, Any]], None],
        vitals: Vitals,
        metrics: Metrics,
        log: Log,
        shutdown: threading.Event,
    ) -> None:
        """`tell` puts an event on its way, `deliver` says that a result waits; neither may block.

        `say` tells the queue at once, for when the disk takes nothing and `shutdown` leaves no time to wait for it.
        """
        self._worker_id = worker_id
        self._record = record
        self._tell = tell
        self._deliver = deliver
        self._say = say
        self._vitals = vitals
        self._metrics = metrics
        self._log = log
        self._shutdown = shutdown

    def complete(self, slot: int, claim: int, result: Result, lease: str | None) -> None:
        """There is a verdict."""
        self._settle(slot, claim, outbox.COMPLETE, result.id, outbox.completion(result, lease))
        self._completed(result)

    def fail(
        self, slot: int, claim: int, eval_id: str, engine: str, error: TaskError, lease: str | None, seconds: float
    ) -> None:
        """There is none, `seconds` after the claim."""
        body = outbox.failure(error.reason, str(error), lease)
        self._settle(slot, claim, outbox.FAIL, eval_id, body)
        self._failed(eval_id, engine, error, body, seconds)

    def give_up(
        self, slot: int, claim: int, eval_id: str, engine: str, error: TaskError, lease: str | None, seconds: float
    ) -> None:
        """There is none yet: where the queue leases, another worker may find it."""
        kind, body = outbox.unfinished(error.reason, str(error), lease)
        self._settle(slot, claim, kind, eval_id, body)
        if kind == outbox.RELEASE:
            self._log.warning("task_released", reason=error.reason, error=str(error))
        else:
            self._failed(eval_id, engine, error, body, seconds)

    def _settle(self, slot: int, claim: int, kind: str, eval_id: str, body: Mapping[str, Any]) -> None:
        def settled() -> bool:
            self._record.settle(claim, kind, eval_id, body, time.time())
            return True

        if self.durably(slot, settled) is None:
            self.say_at_once(kind, eval_id, body)
        self._deliver()

    def _completed(self, result: Result) -> None:
        self._tell(outbox.completed(result, dt.datetime.now(dt.UTC)))
        seconds = result.duration_ms / 1000
        phases = {name.removesuffix("_ms"): ms / 1000 for name, ms in result.phases.items()}
        self._metrics.task_finished(result.engine, result.reason, seconds, phases)
        self._note(result.id, result.engine, result.status, result.reason, seconds)
        self._log.info(
            "task_completed_successfully",
            status=result.status,
            reason=result.reason,
            exit_code=result.exit_code,
            duration_ms=result.duration_ms,
            used_engine=result.engine,
        )

    def _failed(self, eval_id: str, engine: str, error: TaskError, body: Mapping[str, Any], seconds: float) -> None:
        self._tell(outbox.failed(eval_id, body, self._worker_id, dt.datetime.now(dt.UTC)))
        self._metrics.task_finished(engine, error.reason, seconds, {})
        self._note(eval_id, engine, "failed", error.reason, seconds)
        self._log.error("task_failed", reason=error.reason, error=str(error))

    def _note(self, eval_id: str, engine: str, status: str, reason: Reason, seconds: float) -> None:
        summary = {"eval_id": eval_id, "engine": engine, "status": status, "reason": reason, "seconds": seconds}
        self._vitals.finished(summary | {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})

    def durably(self, slot: int, write: "Callable[[], _T]") -> "_T | None":
        """Write to disk, trying for as long as that takes: until it is written, this slot claims nothing more.

        None where it could not be written before the tasks were to be ended.
        """
        while True:
            try:
                written = write()
            except JournalError as error:
                if self._vitals.trouble("disk", f"the state directory cannot be written: {error}"):
                    self._log.error("journal_write_failed", error=str(error))
                if self._shutdown.wait(_DISK_PAUSE):
                    return None
                self._vitals.expect(slot, "waiting for the disk", 60.0)
                continue
            if self._vitals.trouble("disk", None):
                self._log.info("journal_write_restored")
            return written

    def say_at_once(self, kind: str, eval_id: str, body: Mapping[str, Any]) -> None:
        """The disk takes nothing and the worker has to go: what is not said now is never said."""
        try:
            self._say(kind, eval_id, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, this was the last try
            self._log.error("result_lost", error=str(error))
