"""One sandbox, one task: create, attach, start, talk, wait, judge, destroy."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

from crucible_worker.engines import policy
from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.counters import Meter
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.follow import KILL_SECONDS, Cancel, Follower, Nobody, Witness, send
from crucible_worker.engines.frames import python_frame, shell_frame
from crucible_worker.engines.judgement import judged
from crucible_worker.engines.output import Conversation
from crucible_worker.engines.prepared import Maker, Prepared, destroy
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Run, as_bytes


@dataclass(frozen=True, slots=True)
class Job:
    """What a sandbox is to run. `labels` identify it to the worker that has to clean up."""

    code: str
    stdin: str
    language: Language
    limits: Limits
    labels: Mapping[str, str]
    args: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def frame(self) -> bytes:
        """All of it as the program in the sandbox takes it."""
        code, stdin, args = as_bytes(self.code), as_bytes(self.stdin), [as_bytes(arg) for arg in self.args]
        command, file, out = self.language.command, self.language.file, bool(self.limits.artifact_bytes)
        if command:
            return shell_frame(command, file, code, stdin, args, self.files, out=out)
        return python_frame(code, stdin, args, self.files, out=out)


class _Stopwatch:
    """Milliseconds spent in each phase, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = self._clock()
        self.phases[phase] = self.phases.get(phase, 0.0) + (now - self._since) * 1000
        self._since = now


class Sandboxes:
    """Makes sandboxes with one OCI runtime of one daemon. Each serves one job and is destroyed."""

    def __init__(
        self,
        daemon: Daemon,
        runtime: str,
        undertaker: Undertaker,
        cgroups: Cgroups | None = None,
        *,
        live: set[str] | None = None,
        on_trouble: Callable[[str, str], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`runtime` is a name from the daemon's configuration, such as runc or runsc.

        The `undertaker` removes them: no verdict waits for that. `on_trouble` is told the id of one that did not end
        as its verdict says, or cannot be removed, with a sentence about it. Without `cgroups`, what a sandbox has used
        is what the daemon says. `live` gets the names of the sandboxes that are looked after: another one with our
        labels is a leftover.
        """
        self._daemon = daemon
        self._cgroups = cgroups
        self.runtime = runtime
        self.own_loopback = False  # whether the runtime is to make it, rather than the daemon
        self._clock = clock
        self._maker = Maker(daemon, cgroups, set() if live is None else live, clock)
        self._undertaker = undertaker
        self._on_trouble = on_trouble
        here = resources.files("crucible_worker.engines")
        self._boot = here.joinpath("boot.py").read_text(encoding="utf-8")
        self._boot_shell = here.joinpath("boot.sh").read_text(encoding="utf-8")

    def prepare(
        self,
        language: Language,
        limits: Limits,
        labels: Mapping[str, str],
        lap: Callable[[str], None] = lambda _: None,
    ) -> Prepared:
        """A sandbox that waits for a job of this language and these limits. Raises TaskError; see `Maker.make`."""
        return self._maker.make(lambda parent: self._config(language, limits, labels, parent), lap)

    def discard(self, prepared: Prepared) -> None:
        """End a prepared sandbox that is not needed."""
        self._maker.discard(prepared)

    def shape(self, language: Language, limits: Limits) -> Mapping[str, Any]:
        """What a prepared sandbox must be for such a job."""
        return policy.shape(self._config(language, limits, {}, ""))

    def _config(
        self, language: Language, limits: Limits, labels: Mapping[str, str], cgroup_parent: str
    ) -> dict[str, Any]:
        return policy.container_config(
            image=language.image,
            runtime=self.runtime,
            limits=limits,
            labels=labels,
            boot=self._boot_shell if language.command else self._boot,
            shell=bool(language.command),
            may_exec=language.exec,
            cgroup_parent=cgroup_parent,
            preload=language.preload,
            own_loopback=self.own_loopback,
        )

    def run(
        self,
        job: Job,
        cancel: Cancel,
        witness: Witness = Nobody(),  # noqa: B008 - it has no state
        prepared: Prepared | None = None,
    ) -> Run:
        """Run one job to its verdict, in a `prepared` sandbox of its shape or in a new one.

        `witness` is told of it as it goes. Raises TaskError where no verdict can be reached; engine_unavailable means
        that the code never started. The sandbox may still be there when this ends; its code does not run any more.
        """
        watch = _Stopwatch(self._clock)
        try:
            self._refuse_oversize(job)
            ready = prepared or self.prepare(job.language, job.limits, job.labels, watch.lap)
        except BaseException:
            if prepared:
                self._undertaker.give(partial(self.discard, prepared))
            raise
        try:
            run, told = self._run_in(ready, job, cancel, witness, watch)
        except BaseException:
            self._undertaker.give(partial(self.discard, ready))
            raise
        self._undertaker.give(partial(self._bury, ready, told))
        return dataclasses.replace(run, phases_ms=watch.phases, warm=prepared is not None)

    def _bury(self, ready: Prepared, told: int | None) -> None:
        """Remove a sandbox. One whose end was `told` by its supervisor is seen to that end before."""
        with closing(ready):
            try:
                exit_code = told if told is None else self._daemon.wait(ready.container, KILL_SECONDS)
                if exit_code != told:
                    self._on_trouble(ready.container, f"its verdict says exit code {told}, the daemon {exit_code}")
                destroy(self._daemon, ready.container)
            except (TaskError, DaemonGoneError) as error:
                self._on_trouble(ready.container, f"it is not removed yet: {error}")

    def _refuse_oversize(self, job: Job) -> None:
        size = len(job.code) + len(job.stdin) + sum(len(content) for content in job.files.values())
        room = min(job.limits.tmp_bytes, job.limits.file_bytes) // 2
        if size > room:
            words = f"code, stdin and files of {size} characters exceed {room}, half of /sandbox"
            raise TaskError(Reason.INVALID_TASK, words)
        taken = job.language.file
        if any(name == taken or name.startswith(f"{taken}/") or taken.startswith(f"{name}/") for name in job.files):
            raise TaskError(Reason.INVALID_TASK, f"files must not contain {taken}, which is the code")

    def _run_in(
        self, ready: Prepared, job: Job, cancel: Cancel, witness: Witness, watch: _Stopwatch
    ) -> tuple[Run, int | None]:
        """The verdict, and the exit code that the sandbox is going to end with if it has not ended yet."""
        container, group = ready.container, ready.group
        witness.created(container)
        meter = Meter(partial(group.counters, container), partial(self._daemon.counters, container))
        follower = Follower(self._daemon, container, job.limits, cancel, witness, meter, self._clock)
        told = None
        with _once_started(follower.conversation):
            with closing(ready.streams) as streams:
                send(streams.socket, job.frame())
                follower.read(streams.socket, on_start=lambda: watch.lap("boot"))
            watch.lap("run" if follower.conversation.started else "boot")
            if follower.concluded and not follower.ends.any():
                told = _certain(follower)
            exit_code, state = (told, {}) if told is not None else follower.finish()
        if meter.misled and self._cgroups:
            self._cgroups.give_up("the Docker Engine's cgroups are not those that this process sees")
        elif group.parent and told is None:
            meter.take()
        if told is None:
            watch.lap("exit")
        end = (exit_code, state)
        run = judged(self._daemon, self.runtime, follower, container, end, job.language.image, ready.image_id)
        return run, told


def _certain(follower: Follower) -> int | None:
    """The exit code to come, where its supervisor's word is enough for a verdict.

    It is known to be the supervisor's by a secret that no code has held. Unless it says that all went well, it takes
    our own cgroup to tell whether the code was killed for want of memory or processes.
    """
    trailer = follower.conversation.trailer()
    if trailer is None or (trailer.exit_status and follower.meter.counters.oom_kills is None):
        return None
    return trailer.exit_status


@contextmanager
def _once_started(conversation: Conversation) -> Iterator[None]:
    """When the code has started, no failure may look as if it had not, or another engine would run it again."""
    try:
        yield
    except TaskError as error:
        if conversation.started and error.reason is Reason.ENGINE_UNAVAILABLE:
            raise TaskError(Reason.ENGINE_ERROR, str(error)) from error
        raise
