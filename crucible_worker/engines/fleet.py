"""Which engines really work, and which of them runs a task."""

import contextlib
import dataclasses
import datetime as dt
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible_worker.engines.adoption import adopt
from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.follow import Cancel, Nobody, Witness
from crucible_worker.engines.images import Images
from crucible_worker.engines.prepared import Prepared
from crucible_worker.engines.runtimes import makes_loopback, unfit
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.engines.warm import MAX_AGE_SECONDS, Warmth
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Run, Task, Verdict, rfc3339

FALLBACK_ENGINE = "docker"
CANARY_SECONDS = 10.0
LOOK_SECONDS = 10.0  # for a daemon that is well to say so
# So many tasks in a row for which an engine could not reach a verdict, and it gets no more for a while.
FAILURES_IN_A_ROW = 3
REST_SECONDS = (5.0, 10.0, 20.0, 40.0, 60.0)
_CANARY = "print('canary')"


@dataclass(frozen=True, slots=True)
class EngineState:
    """What is known of one engine. `detail` says why it is not available."""

    runtime: str
    available: bool
    detail: str


class Fleet:
    """The engines of a worker. An engine is available after a canary sandbox has really run on it."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        engines: Mapping[str, str],
        languages: Mapping[str, Language],
        fallback: bool,
        limits: Limits,
        labels: Mapping[str, str],
        on_change: Callable[[str, EngineState], None] = lambda *_: None,
        on_trouble: Callable[..., None] = lambda *_, **__: None,
        warm: int = 0,
        pull: bool = False,
        images_allowed: Sequence[str] = (),
        own_loopback: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engines` maps names to OCI runtimes, `languages` to how they are run.

        `labels` mark every sandbox as ours. `on_change` is told of an engine whose state has changed, at the first
        probe of each one too. So many `warm` sandboxes are kept for each engine and language, while `warmth` runs.
        Images that are missing are fetched with `pull`, if `images_allowed` has a pattern for them. `on_trouble` is
        told an event's name and details of what goes wrong beside the tasks. With `own_loopback`, runtimes that can
        make a sandbox's loopback are left to do so: the daemon starts itself once more for that (libnetwork-setkey).
        """
        self.live: set[str] = set()
        self._daemon = daemon
        self._lookout = Daemon(daemon.url, LOOK_SECONDS)
        self._cgroups = Cgroups(labels.get("crucible.worker", ""), self._lookout.info, daemon.url)
        self._undertaker = Undertaker(daemon.close)

        def not_ended(container: str, words: str) -> None:
            on_trouble("sandbox_end_differs", container_id=container, detail=words)

        self._sandboxes = {
            name: Sandboxes(daemon, runtime, self._undertaker, self._cgroups, live=self.live, on_trouble=not_ended)
            for name, runtime in engines.items()
        }
        self.warmth = Warmth(
            itertools.product(engines, languages),
            warm,
            make=self._prepare,
            discard=next(iter(self._sandboxes.values())).discard,
            image_id=self._image_id,
            may=self._may_prepare,
            on_trouble=lambda words: on_trouble("warm_pool_not_filled", detail=words),
        )
        self._own_loopback = own_loopback
        self._running = 0
        self._images = Images(daemon, pull=pull, allowed=images_allowed)
        self._languages = languages
        self._fallback = fallback
        self._limits = limits
        self._labels = dict(labels)
        self._on_change = on_change
        self._clock = clock
        self._failures: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}
        self._lock = threading.Lock()
        self._states: dict[str, EngineState] = {}

    def states(self) -> Mapping[str, EngineState]:
        """The engines' states as of their last probes."""
        with self._lock:
            known = dict(self._states)
        return {
            n: known.get(n, EngineState(s.runtime, available=False, detail="not probed yet"))
            for n, s in self._sandboxes.items()
        }

    def accounting_trouble(self) -> str | None:
        """Why the daemon is asked what a sandbox has used, rather than a cgroup of its own; None where it is not."""
        return self._cgroups.trouble

    def sweep_cgroups(self) -> None:
        """Remove the cgroups that earlier lives of this worker have left. Raises DaemonGoneError or TaskError."""
        self._cgroups.sweep()

    def available(self) -> bool:
        """Whether any engine works."""
        return any(state.available for state in self.states().values())

    def probe_all(self) -> None:
        """Run a canary on every engine that is not known to work; ask the daemon whether it still knows the others."""
        info = self._look()
        if info is None:
            return
        for name, sandboxes in self._sandboxes.items():
            if trouble := unfit(info, sandboxes.runtime):
                self._note(name, trouble)
            elif not self.states()[name].available and self._clock() >= self._rests_until.get(name, 0.0):
                self.probe(name)

    def _look(self) -> Mapping[str, Any] | None:
        """The daemon's set-up, or None where it does not answer: then no engine works."""
        try:
            info = self._lookout.info()
        except (DaemonGoneError, TaskError) as error:
            self._note_all(str(error))
            return None
        for sandboxes in self._sandboxes.values():
            sandboxes.own_loopback = self._own_loopback and makes_loopback(info, sandboxes.runtime)
        return info

    def _note_all(self, trouble: str) -> None:
        for name in self._sandboxes:
            self._note(name, trouble)

    def probe(self, name: str) -> bool:
        """Run a canary on one engine. Returns whether it works now."""
        info = self._look()
        if info is None:
            return False
        sandboxes = self._sandboxes[name]
        if trouble := unfit(info, sandboxes.runtime):
            self._note(name, trouble)
            return False
        name_of_language, language = next(iter(self._languages.items()))
        if language.command:
            language = dataclasses.replace(language, command=("/bin/sh", "-c", "echo canary"))
        limits = Limits(timeout_seconds=CANARY_SECONDS)
        job = Job(_CANARY, "", language, limits, self._labelled(f"canary-{name_of_language}", limits))
        try:
            run = self._with_image(language.image, lambda: sandboxes.run(job, threading.Event()))
        except (TaskError, DaemonGoneError) as error:
            self._note(name, str(error))
            return False
        worked = run.verdict.exit_code == 0 and run.stdout.data == b"canary\n"
        self._note(name, "" if worked else f"its canary ended with {_told(run.verdict)}")
        return worked

    def _note(self, name: str, trouble: str) -> None:
        state = EngineState(self._sandboxes[name].runtime, available=not trouble, detail=trouble)
        with self._lock:
            before = self._states.get(name)
            self._states[name] = state
        if before is None or before.available != state.available:
            self._on_change(name, state)

    def _language_of(self, task: Task) -> Language:
        try:
            return self._languages[task.language]
        except KeyError:
            known = ", ".join(self._languages)
            raise TaskError(
                Reason.LANGUAGE_UNKNOWN, f"no image for language {task.language!r}; known: {known}"
            ) from None

    def choose(self, requested: str) -> str:
        """The engine that is to run a task: the one it names, or docker where that is allowed and needed.

        Raises TaskError (engine_unavailable) where there is none, or where nobody has heard of the one it names.
        """
        states = self.states()
        if requested not in states:
            known = ", ".join(states)
            raise TaskError(Reason.ENGINE_UNAVAILABLE, f"no engine is called {requested!r}; known: {known}")
        if states[requested].available:
            return requested
        fallback = states.get(FALLBACK_ENGINE)
        if self._fallback and fallback is not None and fallback.available:
            return FALLBACK_ENGINE
        raise TaskError(Reason.ENGINE_UNAVAILABLE, f"engine {requested} does not work: {states[requested].detail}")

    def run(
        self,
        name: str,
        task: Task,
        limits: Limits,
        cancel: Cancel,
        witness: Witness = Nobody(),  # noqa: B008 - it has no state
    ) -> Run:
        """Run a task on an engine. Raises TaskError; engine_unavailable means that its code never started."""
        labels = self._labelled(task.eval_id, limits)
        job = Job(task.code, task.stdin, self._language_of(task), limits, labels, task.args, task.files)
        try:
            with self._counted():
                image = job.language.image
                run = self._with_image(image, lambda: self._run(name, task.language, job, cancel, witness))
        except DaemonGoneError as error:
            self._note_all(str(error))
            raise TaskError(Reason.ENGINE_ERROR, str(error)) from error
        except TaskError as error:
            if isinstance(error.__cause__, DaemonGoneError):
                self._note_all(str(error))
            elif error.reason in {Reason.ENGINE_ERROR, Reason.ENGINE_UNAVAILABLE}:
                self._failed(name, str(error))
            raise
        self._failures.pop(name, None)
        return run

    def _with_image(self, image: str, call: Callable[[], Run]) -> Run:
        self._images.check(image)
        try:
            return call()
        except TaskError as error:
            if error.reason is not Reason.IMAGE_MISSING:
                raise
            self._images.fetch(image, error)
        return call()

    def _run(self, name: str, language: str, job: Job, cancel: Cancel, witness: Witness) -> Run:
        sandboxes = self._sandboxes[name]
        prepared = self.warmth.take(name, language, sandboxes.shape(job.language, job.limits))
        if prepared is None:
            return sandboxes.run(job, cancel, witness)
        self.warmth.wake()
        try:
            return sandboxes.run(job, cancel, witness, prepared)
        except TaskError as error:
            # It may have died a moment ago. The code has not started: the cold road is still open.
            if error.reason is not Reason.ENGINE_UNAVAILABLE:
                raise
            return sandboxes.run(job, cancel, witness)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
            self.warmth.wake()

    def _prepare(self, engine: str, language: str) -> Prepared:
        lasting = dataclasses.replace(self._limits, timeout_seconds=MAX_AGE_SECONDS + self._limits.timeout_seconds)
        labels = self._labelled("warm", lasting)
        wanted = self._languages[language]
        self._images.check(wanted.image)
        return self._sandboxes[engine].prepare(wanted, self._limits, labels)

    def _may_prepare(self, engine: str) -> bool:
        """Making a sandbox is CPU-bound: tasks come first, where they would have to share."""
        with self._lock:
            idle = self._running < (os.cpu_count() or 1)
        return idle and self.states()[engine].available

    def _image_id(self, language: str) -> str | None:
        found = self._lookout.image(self._languages[language].image)
        return str(found["Id"]) if found else None

    def close(self, seconds: float) -> bool:
        """Take away the sandboxes that wait for tasks, and see to the end of those whose verdicts are told.

        Returns whether that was done within about `seconds`. The next start removes what is left.
        """
        self.warmth.close()
        return self._undertaker.close(seconds)

    def resume(
        self,
        container: str,
        limits: Limits,
        left: float,
        heard: Iterable[bytes],
        cancel: Cancel,
        witness: Witness,
    ) -> Run:
        """Follow a sandbox that another process has started; see `adopt`, also for what it raises."""
        return adopt(self._daemon, container, limits, left, heard, cancel, witness)

    def _labelled(self, task: str, limits: Limits) -> Mapping[str, str]:
        deadline = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=limits.timeout_seconds)
        return self._labels | {"crucible.task": task, "crucible.deadline": rfc3339(deadline)}

    def _failed(self, name: str, trouble: str) -> None:
        """Count a task without a verdict. An engine that has none again and again rests: a canary may not notice."""
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        over = failures - FAILURES_IN_A_ROW
        if over >= 0:
            self._rests_until[name] = self._clock() + REST_SECONDS[min(over, len(REST_SECONDS) - 1)]
            self._note(name, f"no verdict on {failures} tasks in a row; the last: {trouble}")


def _told(verdict: Verdict) -> str:
    return f"{verdict.reason} ({verdict.error or 'unexpected output'})"
