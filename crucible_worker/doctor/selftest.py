"""The security self-test of one engine: a probe in a real sandbox, and what the host sees of it meanwhile."""

import dataclasses
import datetime as dt
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources

from crucible_worker.doctor import outside
from crucible_worker.doctor.checks import Status
from crucible_worker.doctor.controls import Control, Seen, judge
from crucible_worker.doctor.outside import Outside
from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import Nobody
from crucible_worker.engines.runtimes import is_podman, unfit
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, rfc3339

MEMORY_BYTES, TMP_BYTES, PROCESSES, SECONDS = 96 << 20, 8 << 20, 32, 30.0
END_SECONDS = 30.0
FILLED_BYTES, FILE_BYTES = 24 << 20, 32 << 20  # more than any tmpfs there holds, and less than a file may have


STARTED = "a sandbox as asked for"


class _Host:
    """What code in a sandbox must not reach: listeners of this host."""

    def __init__(self) -> None:
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._abstract = socket.socket(socket.AF_UNIX)
        self.abstract = f"crucible-{uuid.uuid4().hex}"
        self._abstract.bind(f"\0{self.abstract}")
        self._abstract.listen()
        self.port = int(self._tcp.getsockname()[1])

    def heard(self) -> bool:
        """Whether anybody has connected."""
        for listener in (self._tcp, self._abstract):
            listener.settimeout(0)
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
            return True
        return False

    def close(self) -> None:
        """Listen no more."""
        self._tcp.close()
        self._abstract.close()


@contextmanager
def _listening() -> Iterator[_Host]:
    host = _Host()
    try:
        yield host
    finally:
        host.close()


@dataclass(slots=True)
class _Onlooker(Nobody):
    """Looks at the sandbox from outside when its code has started."""

    daemon: Daemon
    seen: list[Outside] = field(default_factory=list)

    def started(self, container: str) -> None:
        local = self.daemon.url.startswith("unix://")
        self.seen.append(outside.look(self.daemon.inspect(container) or {"Id": container}, local=local))


def examine(
    daemon: Daemon,
    runtime: str,
    language: Language,
    limits: Limits,
    labels: Mapping[str, str],
    secrets: frozenset[str] = frozenset(),
) -> list[Control]:
    """Every control of a sandbox on one runtime. `limits` keep their kind, and are made small.

    `secrets` must appear nowhere. What cannot even be started is one control that fails. Raises DaemonGoneError.
    """
    small = dataclasses.replace(
        limits,
        timeout_seconds=SECONDS,
        memory_bytes=MEMORY_BYTES,
        tmp_bytes=TMP_BYTES,
        file_bytes=FILE_BYTES,
        processes=PROCESSES,
    )
    cgroups = Cgroups(labels["crucible.worker"], daemon.info, daemon.url)
    undertaker = Undertaker(daemon.close)
    sandboxes = Sandboxes(daemon, runtime, undertaker, cgroups)
    onlooker = _Onlooker(daemon)
    with _listening() as host:
        given = {
            "kernel": daemon.info().get("KernelVersion"),
            "port": host.port,
            "abstract": host.abstract,
            "memory": MEMORY_BYTES,
            "processes": PROCESSES,
            "filled": FILLED_BYTES,
            "executable": ["/tmp", "/dev/shm", *([] if language.exec else ["/sandbox"])],  # noqa: S108
        }
        probe = resources.files("crucible_worker.doctor").joinpath("probe.py").read_text(encoding="utf-8")
        deadline = rfc3339(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=SECONDS))
        marks = {**labels, "crucible.task": "self-test", "crucible.deadline": deadline}
        job = Job(probe, json.dumps(given), language, small, marks)
        try:
            run = sandboxes.run(job, threading.Event(), onlooker)
        except TaskError as error:
            undertaker.close(END_SECONDS)
            return [Control(STARTED, Status.FAIL, "outside", str(error))]
        heard = host.heard()
    undertaker.close(END_SECONDS)
    try:
        inside = json.loads(run.stdout.data)
        seen = onlooker.seen[0]
    except (ValueError, IndexError):
        words = f"the probe ended with {run.verdict.reason}: {run.stderr.data[-300:].decode('utf-8', 'replace')}"
        return [Control(STARTED, Status.FAIL, "inside", words)]
    # Such as a seccomp profile that neither a container's configuration nor its inside shows.
    info = daemon.info()
    trouble = unfit(info, runtime)
    return [
        Control(STARTED, Status.FAIL if trouble else Status.PASS, "outside", trouble or ""),
        *judge(
            Seen(
                inside=inside,
                outside=seen,
                limits=small,
                environment=_declared(daemon, language.image),
                podman=is_podman(info),
                secrets=secrets,
                heard=heard,
                left=_left(daemon, run.container_id, seen),
                accounted=run.cpu_ms is not None and run.peak_memory_bytes is not None,
            )
        ),
    ]


def _declared(daemon: Daemon, image: str) -> frozenset[str]:
    """The names of the variables that an image sets."""
    config = (daemon.image(image) or {}).get("Config") or {}
    return frozenset(str(pair).partition("=")[0] for pair in config.get("Env") or ())


def _left(daemon: Daemon, container: str, seen: Outside) -> tuple[str, ...]:
    found = [] if daemon.inspect(container) is None else [f"the container {container[:12]}"]
    if not outside.gone(seen):
        found.append(f"its process {seen.pid}")
    return tuple(found)


def labels_of(worker_id: str) -> Mapping[str, str]:
    """Labels by which the worker, or `cleanup`, knows what a doctor that was killed has left."""
    return {"crucible.worker": worker_id, "crucible.boot": f"doctor-{os.getpid()}"}
