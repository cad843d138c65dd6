"""One sandbox, one task: create, attach, start, talk, wait, judge, destroy."""

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any

from crucible_worker.engines import policy, processes, verdict
from crucible_worker.engines.cgroups import Cgroup, Cgroups
from crucible_worker.engines.counters import Meter
from crucible_worker.engines.daemon import Attachment, Daemon, DaemonGoneError
from crucible_worker.engines.follow import Cancel, Follower, Nobody, Witness, send
from crucible_worker.engines.frames import python_frame, shell_frame
from crucible_worker.engines.output import Conversation, Trailer
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Run, as_bytes

_BRIEF_SECONDS = 10.0


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
        cgroups: Cgroups | None = None,
        clock: Callable[[], float] = time.monotonic,
        live: set[str] | None = None,
    ) -> None:
        """`runtime` is a name from the daemon's configuration, such as runc or runsc.

        Without `cgroups`, what a sandbox has used is what the daemon says. `live` gets the names of the sandboxes that
        are looked after: another one with our labels is a leftover.
        """
        self._daemon = daemon
        self._cgroups = cgroups
        self.runtime = runtime
        self._clock = clock
        self._live = set() if live is None else live
        here = resources.files("crucible_worker.engines")
        self._boot = here.joinpath("boot.py").read_text(encoding="utf-8")
        self._boot_shell = here.joinpath("boot.sh").read_text(encoding="utf-8")

    def run(
        self,
        job: Job,
        cancel: Cancel,
        witness: Witness = Nobody(),  # noqa: B008 - it has no state
    ) -> Run:
        """Run one job to its verdict. `witness` is told of it as it goes.

        Raises TaskError where no verdict can be reached; engine_unavailable means that the code never started.
        The sandbox is gone when this returns or raises, unless the daemon itself is.
        """
        self._refuse_oversize(job)
        name = f"crucible-{uuid.uuid4().hex}"
        self._live.add(name)
        try:
            with ExitStack() as stack:
                try:
                    group = stack.enter_context(self._cgroups.one()) if self._cgroups else Cgroup()
                except DaemonGoneError as error:
                    raise TaskError(Reason.ENGINE_UNAVAILABLE, str(error)) from error
                return self._run_in(group, name, job, cancel, witness)
        finally:
            self._live.discard(name)

    def _run_in(self, group: Cgroup, name: str, job: Job, cancel: Cancel, witness: Witness) -> Run:
        watch = _Stopwatch(self._clock)
        config = policy.container_config(
            image=job.language.image,
            runtime=self.runtime,
            limits=job.limits,
            labels=job.labels,
            boot=self._boot_shell if job.language.command else self._boot,
            shell=bool(job.language.command),
            may_exec=job.language.exec,
            cgroup_parent=group.parent,
        )
        try:
            container = self._daemon.create(name, config)
        except DaemonGoneError as error:
            # The daemon may have made it all the same; the name finds it.
            self.destroy_quietly(name)
            raise TaskError(Reason.ENGINE_UNAVAILABLE, str(error)) from error
        try:
            run = self._run_created(container, config, group, job, cancel, witness, watch)
        except BaseException:
            self.destroy_quietly(container)
            raise
        self.destroy(container)
        watch.lap("remove")
        return dataclasses.replace(run, phases_ms=watch.phases)

    def _refuse_oversize(self, job: Job) -> None:
        size = len(job.code) + len(job.stdin) + sum(len(content) for content in job.files.values())
        room = min(job.limits.tmp_bytes, job.limits.file_bytes) // 2
        if size > room:
            words = f"code, stdin and files of {size} characters exceed {room}, half of /sandbox"
            raise TaskError(Reason.INVALID_TASK, words)
        taken = job.language.file
        if any(name == taken or name.startswith(f"{taken}/") or taken.startswith(f"{name}/") for name in job.files):
            raise TaskError(Reason.INVALID_TASK, f"files must not contain {taken}, which is the code")

    def _run_created(
        self,
        container: str,
        config: Mapping[str, Any],
        group: Cgroup,
        job: Job,
        cancel: Cancel,
        witness: Witness,
        watch: _Stopwatch,
    ) -> Run:
        witness.created(container)
        image_id = self._verify(container, config)
        watch.lap("create")
        meter = Meter(partial(group.counters, container), partial(self._daemon.counters, container))
        follower = Follower(self._daemon, container, job.limits, cancel, witness, meter, self._clock)
        with _once_started(follower.conversation):
            with _lost(self._daemon.attach, container) as streams:
                self._daemon.start(container)
                watch.lap("start")
                send(streams.socket, job.frame())
                follower.read(streams.socket, on_start=lambda: watch.lap("boot"))
            watch.lap("run" if follower.conversation.started else "boot")
            exit_code, state = follower.finish()
        if meter.misled and self._cgroups:
            self._cgroups.give_up("the Docker Engine's cgroups are not those that this process sees")
        elif group.parent:
            meter.take()
        watch.lap("exit")
        return self.judged(follower, container, (exit_code, state), job.language.image, image_id)

    def judged(
        self,
        follower: Follower,
        container: str,
        end: tuple[int | None, Mapping[str, Any]],
        image: str,
        image_id: str,
        unheard: Callable[[int | None], Trailer | None] = lambda _: None,
    ) -> Run:
        """The verdict on a sandbox that has come to its `end`: an exit code and a final state.

        `unheard` says what to believe where its last words are missing and nobody else has ended it.
        """
        exit_code, state = end
        conversation, ends = follower.conversation, follower.ends
        trailer = conversation.finish()
        # Asked only where it matters: an end that was not ours and without a word that fits it.
        silent = (trailer is None or trailer.exit_status != exit_code) and exit_code not in {None, 0} and not ends.any()
        oom_killed = bool(state.get("OOMKilled"))
        befell = self._daemon.what_befell(container, state) if silent and not oom_killed else frozenset()
        if trailer is None and not (befell or oom_killed or ends.any()):
            trailer = unheard(exit_code)
        evidence = verdict.Evidence(
            runtime=self.runtime,
            limits=follower.limits,
            started=conversation.started,
            exit_code=exit_code,
            oom_killed=oom_killed or "oom" in befell,
            timed_out=ends.timed_out,
            flooded=ends.flooded,
            cancelled=ends.cancelled,
            killed_outside="kill" in befell,
            trailer=trailer,
            counters=follower.meter.counters,
            daemon_error=str(state.get("Error") or ""),
            stderr_excerpt=conversation.stderr.captured().data[-400:].decode("utf-8", "replace").strip(),
        )
        return Run(
            verdict=verdict.judge(evidence),
            stdout=conversation.stdout.captured(),
            stderr=conversation.stderr.captured(),
            runtime=self.runtime,
            image=image,
            image_id=image_id,
            phases_ms={},
            container_id=container,
            cpu_ms=follower.meter.cpu_ms,
            peak_memory_bytes=follower.meter.counters.peak_memory_bytes,
            artifacts=follower.artifacts.artifacts(),
        )

    def _verify(self, container: str, config: Mapping[str, Any]) -> str:
        """The image id of a created container whose isolation is what was asked for."""
        effective = self._daemon.inspect(container)
        if effective is None:
            raise TaskError(Reason.ENGINE_UNAVAILABLE, "the sandbox vanished after it was made")
        if effective.get("Mounts"):
            where = ", ".join(str(mount.get("Destination")) for mount in effective["Mounts"])
            raise TaskError(Reason.IMAGE_REFUSED, f"image {config['Image']} declares volumes ({where})")
        if found := policy.violations(config, effective):
            raise TaskError(Reason.ENGINE_UNAVAILABLE, f"the daemon weakened the sandbox: {'; '.join(found)}")
        return str(effective["Image"])

    def destroy(self, container: str) -> None:
        """Remove a sandbox and see that it is gone. Raises TaskError (engine_error) if it is not."""
        self._daemon.remove(container)
        if self._daemon.inspect(container) is not None:
            raise TaskError(Reason.ENGINE_ERROR, f"sandbox {container[:12]} is still there after its removal")

    def destroy_quietly(self, container: str) -> None:
        """Remove a sandbox on the way out of a failure, which must not be hidden by another.

        A daemon that has just been silent gets little time: what stays is a leftover, and removed later.
        """
        daemon = Daemon(self._daemon.url, _BRIEF_SECONDS)
        try:
            daemon.remove(container)
        except (TaskError, DaemonGoneError):
            return
        finally:
            daemon.close()
        # A runtime that failed has been seen to leave a process that the daemon does not know.
        processes.kill(container)


@contextmanager
def _once_started(conversation: Conversation) -> Iterator[None]:
    """When the code has started, no failure may look as if it had not, or another engine would run it again."""
    try:
        yield
    except TaskError as error:
        if conversation.started and error.reason is Reason.ENGINE_UNAVAILABLE:
            raise TaskError(Reason.ENGINE_ERROR, str(error)) from error
        raise


@contextmanager
def _lost(attach: Callable[[str], Attachment], container: str) -> Iterator[Attachment]:
    streams = attach(container)
    try:
        yield streams
    finally:
        streams.close()
