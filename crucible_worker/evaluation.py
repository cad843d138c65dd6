"""One task in a worker's hands: recorded, run or taken over, judged, and what is to be said of it put on disk."""

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from crucible_worker import outbox
from crucible_worker.errors import JournalError, RetryError, TaskError
from crucible_worker.journal import Claim
from crucible_worker.leases import Hold, Leases
from crucible_worker.model import Event, InvalidTaskError, Lease, Limits, Reason, Result, Run, Task
from crucible_worker.settlement import Log, Settlement
from crucible_worker.transcript import Transcript, Transcripts
from crucible_worker.vitals import Vitals

# Beyond a task's own timeout: two engines' boot, kill and removal, each with the daemon's own deadlines.
ENGINE_SECONDS = 300.0
# How long a daemon may be away before a sandbox of an earlier life is given up.
RESUME_SECONDS = 120.0
_SHUTDOWN = TaskError(Reason.WORKER_SHUTDOWN, "the worker was told to stop before the code had ended")


class Cancel(Protocol):
    """Says when a run is not wanted any more."""

    def is_set(self) -> bool:
        """Whether to end it."""


class Witness(Protocol):
    """Who is told of a run as it goes."""

    def created(self, container: str) -> None:
        """A sandbox is there, and nothing has been heard from it."""

    def heard(self, data: bytes) -> None:
        """Bytes of its attached stream."""

    def started(self, container: str) -> None:
        """The code has started."""

    def said(self, stream: int, data: bytes) -> None:
        """The code has printed something, on stream 1 or 2."""


class Engines(Protocol):
    """Where tasks run."""

    def choose(self, requested: str) -> str:
        """The engine that is to run a task. Raises TaskError."""

    def probe(self, name: str) -> bool:
        """Whether an engine works now, tried."""

    def run(self, name: str, task: Task, limits: Limits, cancel: Cancel, witness: Witness) -> Run:
        """Run a task. Raises TaskError."""

    def resume(
        self, container: str, limits: Limits, left: float, heard: Iterable[bytes], cancel: Cancel, witness: Witness
    ) -> Run:
        """Follow a sandbox of an earlier life to its end. Raises TaskError, or RetryError where that cannot be seen."""


class Live(Protocol):
    """Where a task's output goes while it runs. Returns at once."""

    def said(self, stream: int, data: bytes) -> None:
        """The code has printed something."""

    def replay(self) -> None:
        """What comes next was said before."""

    def go_on(self) -> None:
        """What comes next is new."""

    def finish(self) -> None:
        """The task is settled."""

    def drop(self) -> None:
        """Somebody else goes on with the task."""


class LiveLogs(Protocol):
    """Who watches running tasks."""

    def stream(self, eval_id: str) -> Live:
        """A place for the output of one task."""


class Record(Protocol):
    """What is on disk before it is said."""

    def claim(self, eval_id: str, lease: str | None, engine: str, at: float) -> int:
        """Note a claim."""

    def started(self, claim: int, run: Mapping[str, Any]) -> None:
        """Note that its code has started."""

    def abandon(self, claim: int) -> None:
        """Forget a claim."""


class Metrics(Protocol):
    """What is counted."""

    def slot_taken(self) -> None:
        """A task begins."""

    def slot_freed(self) -> None:
        """A task has ended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A task in a slot, and what was noted about it."""

    slot: int
    task: Task
    limits: Limits
    hold: Hold
    claim: int
    transcript: Transcript
    live: Live


class Evaluations:
    """Sees tasks through, one in each slot."""

    def __init__(
        self,
        *,
        worker_id: str,
        engines: Engines,
        record: Record,
        transcripts: Transcripts,
        live: LiveLogs,
        leases: Leases,
        settlement: Settlement,
        tell: Callable[[Event], None],
        limits: Limits,
        timeout_max: float,
        vitals: Vitals,
        metrics: Metrics,
        log: Log,
        task_context: Callable[[str, str], AbstractContextManager[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` puts an event on its way, and may not block. `timeout_max` in seconds.

        `clock` must go on from one process to the next, as Linux's monotonic one does.
        """
        self._worker_id = worker_id
        self._engines = engines
        self._record = record
        self._transcripts = transcripts
        self._live = live
        self._leases = leases
        self._settlement = settlement
        self._tell = tell
        self._limits = limits
        self._timeout_max = timeout_max
        self._vitals = vitals
        self._metrics = metrics
        self._log = log
        self._task_context = task_context
        self._clock = clock
        self._began = clock()

    def refuse(self, slot: int, error: InvalidTaskError) -> None:
        """Something came that is no task. Tell the queue, where it can be told about which."""
        eval_id = error.eval_id
        if eval_id is None:
            self._log.error("task_unreportable", error=str(error))
            return
        with self._task_context(eval_id, ""):
            claim = self._settlement.durably(slot, lambda: self._record.claim(eval_id, None, "", time.time()))
            invalid = TaskError(Reason.INVALID_TASK, str(error))
            self._settlement.fail(slot, claim or 0, eval_id, "", invalid, None, 0.0)

    def process(self, slot: int, task: Task) -> None:
        """Run a task that was just claimed."""
        limits = self._limits.for_task(task, self._timeout_max)
        self._expect(slot, limits.timeout_seconds, task)
        hold = self._leases.hold(task.eval_id, task.lease)
        lease = task.lease.id if task.lease else None
        with self._task_context(task.eval_id, task.engine):
            claim = self._settlement.durably(
                slot, lambda: self._record.claim(task.eval_id, lease, task.engine, time.time())
            )
            if claim is None:
                kind, body = outbox.unfinished(Reason.WORKER_SHUTDOWN, "the disk takes no record of it", lease)
                self._settlement.say_at_once(kind, task.eval_id, body)
                return
            self._expect(slot, limits.timeout_seconds, task)
            self._log.info("processing_task_started", language=task.language, timeout=limits.timeout_seconds)
            job = self._job(slot, task, limits, hold, claim)
            self._see_through(job, lambda: self._evaluate(job))

    def resume(self, slot: int, claim: Claim) -> bool:
        """Follow the sandbox of an earlier life. Returns False where the daemon cannot say yet what became of it."""
        note = claim.run or {}
        task, limits = _remembered(claim), Limits(**note["limits"])
        self._expect(slot, limits.timeout_seconds, task)
        hold = self._leases.hold(task.eval_id, task.lease)
        job = self._job(slot, task, limits, hold, claim.id)
        with self._task_context(task.eval_id, task.engine):
            try:
                return self._see_through(job, lambda: self._take_over(job, note))
            except RetryError as error:
                self._leases.drop(hold)
                if self._vitals.first_time(f"away {claim.id}"):
                    self._log.warning("sandbox_not_reached", error=str(error))
                return False

    def _job(self, slot: int, task: Task, limits: Limits, hold: Hold, claim: int) -> Job:
        return Job(slot, task, limits, hold, claim, self._transcripts.of(claim), self._live.stream(task.eval_id))

    def _see_through(self, job: Job, evaluate: Callable[[], Result]) -> bool:
        self._metrics.slot_taken()
        began = self._clock()
        try:
            self._conclude(job, self._attempt(evaluate), began)
        finally:
            self._metrics.slot_freed()
        return True

    def _attempt(self, evaluate: Callable[[], Result]) -> Result | TaskError:
        """The result of a task, or why there is none."""
        try:
            return evaluate()
        except TaskError as error:
            return error
        except RetryError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect of ours must neither lose the task nor stop the worker
            self._log.error("internal_error", error=f"{type(error).__name__}: {error}", exc_info=True)
            return TaskError(Reason.ENGINE_ERROR, f"internal error: {type(error).__name__}: {error}")

    def _evaluate(self, job: Job) -> Result:
        started, began = dt.datetime.now(dt.UTC), self._clock()
        try:
            engine, run = self._run_somewhere(job)
        except RetryError as error:
            raise TaskError(Reason.ENGINE_ERROR, str(error)) from error
        return self._result(job, run, engine, started, self._clock() - began)

    def _take_over(self, job: Job, note: Mapping[str, Any]) -> Result:
        # A clock that went back is that of another boot; what it says is no measure.
        spent = max(self._clock() - note["monotonic"], 0.0)
        left = max(job.limits.timeout_seconds - spent, 0.0)

        def listening() -> None:
            job.transcript.resume()
            job.live.go_on()

        job.live.replay()
        witness = _Notes(lambda _: None, listening, job.transcript.add, job.live.said)
        container = note["container"]
        try:
            run = self._engines.resume(container, job.limits, left, job.transcript.heard(), job.hold, witness)
        except RetryError as error:
            if self._clock() - self._began < left + RESUME_SECONDS:
                raise
            raise TaskError(Reason.WORKER_CRASHED, f"the worker ended while it ran this task; {error}") from error
        started = dt.datetime.fromisoformat(note["started_at"])
        self._log.info("sandbox_adopted", container_id=container)
        return self._result(job, run, note["engine"], started, max(self._clock() - note["monotonic"], 0.0))

    def _result(self, job: Job, run: Run, engine: str, started: dt.datetime, seconds: float) -> Result:
        # By the monotonic clock: the other one may have been set meanwhile.
        finished = started + dt.timedelta(seconds=seconds)
        return Result.of(
            job.task, run, engine=engine, limits=job.limits, started=started, finished=finished,
            worker_id=self._worker_id,
        )  # fmt: skip

    def _run_somewhere(self, job: Job) -> tuple[str, Run]:
        """Run a task on its engine, or on the one that stands in for it."""
        engine = self._choose(job.task)
        try:
            return engine, self._run_on(engine, job)
        except TaskError as error:
            # The code has not started: where its engine has just broken, another may still run it.
            if error.reason is not Reason.ENGINE_UNAVAILABLE or self._engines.probe(engine):
                raise
        stand_in = self._choose(job.task)
        return stand_in, self._run_on(stand_in, job)

    def _choose(self, task: Task) -> str:
        engine = self._engines.choose(task.engine)
        if engine != task.engine:
            self._log.warning("engine_fallback", requested_engine=task.engine, fallback_engine=engine)
        return engine

    def _run_on(self, engine: str, job: Job) -> Run:
        def started(container: str) -> None:
            now = dt.datetime.now(dt.UTC)
            self._note_start(job, engine, container, now)
            self._tell(outbox.running(job.task.eval_id, job.limits, self._worker_id, container, now))

        witness = _Notes(started, job.transcript.restart, job.transcript.add, job.live.said)
        return self._engines.run(engine, job.task, job.limits, job.hold, witness)

    def _note_start(self, job: Job, engine: str, container: str, now: dt.datetime) -> None:
        note = {
            "container": container,
            "engine": engine,
            "limits": dataclasses.asdict(job.limits),
            "language": job.task.language,
            "lease_seconds": job.task.lease.seconds if job.task.lease else None,
            "started_at": now.isoformat(),
            "monotonic": self._clock(),
        }
        try:
            self._record.started(job.claim, note)
        except JournalError as error:
            # It costs only what a crash would now cost.
            self._log.warning("start_not_recorded", error=str(error))

    def _conclude(self, job: Job, outcome: Result | TaskError, began: float) -> None:
        """Say what has become of a task, on disk."""
        lease = job.task.lease.id if job.task.lease else None
        ended = isinstance(outcome, Result) and outcome.reason is Reason.CANCELLED
        if ended and job.hold.lost:
            self._settlement.durably(job.slot, lambda: self._record.abandon(job.claim))
            self._log.warning("task_abandoned", detail="its lease is lost; somebody else has it")
            job.live.drop()
        elif isinstance(outcome, Result) and not (ended and not job.hold.cancelled):
            self._settlement.complete(job.slot, job.claim, outcome, lease)
            job.live.finish()
        else:
            error = _SHUTDOWN if isinstance(outcome, Result) or _left_undone(outcome, job.hold) else outcome
            unfinished = error.reason in {Reason.WORKER_SHUTDOWN, Reason.WORKER_CRASHED}
            say = self._settlement.give_up if unfinished else self._settlement.fail
            seconds = self._clock() - began
            say(job.slot, job.claim, job.task.eval_id, job.task.engine, error, lease, seconds)
            (job.live.drop if unfinished and lease is not None else job.live.finish)()
        job.transcript.discard()
        if lease is None or job.hold.lost:
            self._leases.drop(job.hold)

    def _expect(self, slot: int, timeout: float, task: Task) -> None:
        self._vitals.expect(slot, "running", timeout + ENGINE_SECONDS, task.eval_id, task.engine)


def _left_undone(error: TaskError, hold: Hold) -> bool:
    """Whether the engine failed a task that the worker was about to give up anyway."""
    return hold.stopping and error.reason in {Reason.ENGINE_ERROR, Reason.ENGINE_UNAVAILABLE}


@dataclasses.dataclass(frozen=True, slots=True)
class _Notes:
    """A witness made of callables."""

    started: Callable[[str], None]
    begin: Callable[[], None]
    heard: Callable[[bytes], None]
    said: Callable[[int, bytes], None]

    def created(self, container: str) -> None:  # noqa: ARG002 - the transcript is that of the task
        """A sandbox is there."""
        self.begin()


def _remembered(claim: Claim) -> Task:
    """The task of a claim, as far as the journal knows it: without its code, which runs already."""
    note = claim.run or {}
    lease = Lease(claim.lease, note["lease_seconds"]) if claim.lease and note.get("lease_seconds") else None
    return Task(claim.eval_id, "", note["language"], claim.engine, note["limits"]["timeout_seconds"], lease)
