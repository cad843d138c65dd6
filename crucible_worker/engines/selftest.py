"""The security self-test of one engine on this host: what a sandbox is, seen from inside and from outside."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from crucible_worker.engines import policy
from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.follow import Nobody
from crucible_worker.engines.prepared import Prepared
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Run

LIMITS = Limits(timeout_seconds=20.0, memory_bytes=96 << 20, processes=16, tmp_bytes=8 << 20)
_BOOT_SECONDS = 30.0
_END_SECONDS = 30.0
_SOCKETS = ("/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock")
_ENVIRONMENT = {"PATH", "HOME", "HOSTNAME", "LANG", "TMPDIR", "LC_CTYPE"}
_DEVICES = {
    "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
    "zero",
}  # fmt: skip
_GVISOR_DEVICES = {"fuse", "net"}  # served by its own kernel
_OWN_NAMESPACES = ("mnt", "net", "ipc", "uts")
_OUT_OF_MEMORY = "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))"
_OUT_OF_PROCESSES = """
import os, time
made = 0
try:
    while made < 300:
        if os.fork() == 0: time.sleep(60)
        made += 1
except OSError:
    pass
print(made)
"""
_OUT_OF_TIME = "while True: pass"


@dataclass(frozen=True, slots=True)
class Control:
    """One control of a sandbox: how it was looked at, whether it holds (None: that cannot be seen), what was found."""

    name: str
    how: str
    holds: bool | None
    found: str


def examine(daemon: Daemon, runtime: str, language: Language, worker: str) -> list[Control]:
    """Run the self-test on one OCI runtime, in Python sandboxes labelled as this worker's. None of them is left.

    Raises TaskError or DaemonGoneError where no sandbox can be had at all.
    """
    labels = {"crucible.worker": worker, "crucible.boot": f"selftest-{uuid.uuid4().hex}", "crucible.task": "selftest"}
    undertaker = Undertaker(daemon.close)
    cgroups = Cgroups(worker, daemon.info, daemon.url)
    sandboxes = Sandboxes(daemon, runtime, undertaker, cgroups)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            controls = list(_looked_at(daemon, sandboxes, language, labels, listener.getsockname()[1]))
        controls += _tried(sandboxes, language, labels)
    finally:
        ended = undertaker.close(_END_SECONDS)
    left = daemon.containers(labels)
    words = "nothing is left" if not left else f"{len(left)} sandboxes are left"
    return [*controls, Control("destroyed after use", "outside", ended and not left, words)]


def _looked_at(
    daemon: Daemon, sandboxes: Sandboxes, language: Language, labels: Mapping[str, str], port: int
) -> Iterator[Control]:
    prepared = sandboxes.prepare(language, LIMITS, labels)
    try:
        if not prepared.is_up(_BOOT_SECONDS):
            raise TaskError(Reason.ENGINE_UNAVAILABLE, "the sandbox did not come up")
        inspected = daemon.inspect(prepared.container) or {}
        outside = _namespaces(inspected, plain=sandboxes.runtime == policy.PLAIN_RUNTIME)
    except BaseException:
        sandboxes.discard(prepared)
        raise
    probe = resources.files("crucible_worker.engines").joinpath("selftest_probe.py").read_text(encoding="utf-8")
    run = _run(sandboxes, language, labels, probe, LIMITS, json.dumps({"port": port, "sockets": _SOCKETS}), prepared)
    try:
        facts = json.loads(run.stdout.data)
    except ValueError:
        said = run.stderr.data[-200:].decode("utf-8", "replace").strip()
        yield Control("the probe runs", "inside", holds=False, found=f"{run.verdict.reason}: {said or 'no answer'}")
        return
    yield from inside(facts, LIMITS, plain=sandboxes.runtime == policy.PLAIN_RUNTIME)
    yield outside
    yield as_asked(inspected)
    known = run.cpu_ms is not None
    yield Control("use counted outside", "outside", known or None, f"{run.cpu_ms} ms" if known else "unknown here")


def _run(
    sandboxes: Sandboxes,
    language: Language,
    labels: Mapping[str, str],
    code: str,
    limits: Limits,
    stdin: str = "",
    prepared: Prepared | None = None,
) -> Run:
    return sandboxes.run(Job(code, stdin, language, limits, labels), threading.Event(), Nobody(), prepared)


def _tried(sandboxes: Sandboxes, language: Language, labels: Mapping[str, str]) -> Iterator[Control]:
    """Limits that only show when somebody runs into them."""
    roomy = Limits(timeout_seconds=20.0, memory_bytes=512 << 20, processes=LIMITS.processes)
    plain = sandboxes.runtime == policy.PLAIN_RUNTIME
    short = Limits(timeout_seconds=1.0, memory_bytes=LIMITS.memory_bytes, processes=LIMITS.processes)
    cases: Iterable[tuple[str, str, Limits, Callable[[Run], bool]]] = [
        ("memory limit", _OUT_OF_MEMORY, LIMITS, lambda run: run.verdict.reason is Reason.OUT_OF_MEMORY),
        ("process limit", _OUT_OF_PROCESSES, roomy, partial(_few_processes, plain=plain)),
        ("time limit", _OUT_OF_TIME, short, lambda run: run.verdict.reason is Reason.TIMEOUT),
    ]
    for name, code, limits, holds in cases:
        try:
            run = _run(sandboxes, language, labels, code, limits)
        except (TaskError, DaemonGoneError) as error:
            yield Control(name, "tried", holds=False, found=str(error))
            continue
        said = run.stdout.data[:40].decode("utf-8", "replace").strip()
        yield Control(name, "tried", holds(run), f"{run.verdict.reason}{f', {said} processes' if said else ''}")


def _few_processes(run: Run, *, plain: bool) -> bool:
    """Whether it could not make many; gVisor's kernel ends altogether when it gets no further thread."""
    if run.verdict.reason is Reason.PROCESS_LIMIT or (run.verdict.reason is Reason.OUT_OF_MEMORY and not plain):
        return True
    said = run.stdout.data.strip()
    return said.isdigit() and int(said) < 300


def inside(facts: Mapping[str, Any], limits: Limits, *, plain: bool) -> Iterator[Control]:
    """The controls as the probe's facts show them. `plain` says that the host's own kernel runs the code. Pure."""
    uids = set(facts["ids"])
    yield Control("not root", "inside", uids == {65534}, f"user and groups {sorted(uids)}")
    held = sorted(name for name, value in facts["capabilities"].items() if int(value or "1", 16))
    yield Control("no capabilities", "inside", not held, ", ".join(held) or "none")
    yield Control("no new privileges", "inside", facts["no_new_privs"] == 1, f"prctl says {facts['no_new_privs']}")
    yield Control(
        "system calls filtered", "inside", facts["seccomp"] == "2" or not plain,
        f"seccomp {facts['seccomp'] or 'unknown'}" if plain else "gVisor's own kernel answers them",
    )  # fmt: skip
    attempts = facts["attempts"]
    sealed = "ro" in (facts["mounts"].get("/") or ()) or not plain
    outcome = attempts["write to the root"]
    yield Control(
        "read-only root", "inside", sealed and outcome != "allowed", outcome if sealed else "mounted writable"
    )
    yield _refused("kernel settings out of reach", attempts["write to /proc"])
    yield _refused("no mounting", attempts["mount"])
    wanted = {"rw", "nosuid", "nodev"} if plain else {"rw"}
    found = {path: set(facts["mounts"].get(path) or ()) for path in ("/sandbox", "/tmp")}  # noqa: S108 - in the sandbox
    loose = [path for path, options in found.items() if not wanted <= options]
    yield Control("writable folders nosuid, nodev", "inside", not loose, ", ".join(loose) or "both")
    others = sorted(set(facts["interfaces"]) - {"lo"})
    yield Control("no network", "inside", not others, ", ".join(others) or "loopback of its own")
    yield _refused("this host out of reach", attempts["reach this host"])
    yield _refused("metadata address out of reach", attempts["reach the metadata address"])
    devices = sorted(set(facts["devices"]) - _DEVICES - (set() if plain else _GVISOR_DEVICES))
    yield Control("no devices", "inside", not devices, ", ".join(devices) or "the usual ones")
    yield Control("no engine's socket", "inside", not facts["sockets"], ", ".join(facts["sockets"]) or "none")
    strange = sorted(set(facts["environment"]) - _ENVIRONMENT)
    yield Control("clean environment", "inside", not strange, ", ".join(strange) or "nothing of the worker's")
    yield Control("no foreign descriptors", "inside", facts["descriptors"] == [0, 1, 2], str(facts["descriptors"]))
    expected = {
        "NOFILE": [limits.open_files] * 2, "FSIZE": [limits.file_bytes] * 2, "CORE": [0, 0],
    }  # fmt: skip
    wrong = [name for name, value in expected.items() if list(facts["limits"][name]) != value]
    yield Control("limits of a process", "inside", not wrong, ", ".join(wrong) or "files, sizes, no core dumps")


def _refused(name: str, outcome: str) -> Control:
    return Control(name, "tried", outcome != "allowed", outcome)


def as_asked(inspected: Mapping[str, Any]) -> Control:
    """Whether the daemon's own account of a sandbox has what matters most; each start compares all of it. Pure."""
    host = inspected.get("HostConfig") or {}
    wanted = {
        "Privileged": False, "ReadonlyRootfs": True, "NetworkMode": "none", "IpcMode": "private",
        "Memory": LIMITS.memory_bytes, "MemorySwap": LIMITS.memory_bytes, "PidMode": "", "UTSMode": "",
    }  # fmt: skip
    wrong = [f"{key} is {host.get(key)!r}" for key, value in wanted.items() if host.get(key) != value]
    wrong += ["something is mounted"] if inspected.get("Mounts") else []
    return Control("made as asked", "outside", not wrong, "; ".join(wrong) or "the engine agrees")


def _namespaces(inspected: Mapping[str, Any], *, plain: bool) -> Control:
    """Whether the sandbox's first process shares a namespace with this one. Cannot be seen of a remote engine.

    gVisor gives its code process ids of its own; its kernel itself is a process among the host's.
    """
    kinds = (*_OWN_NAMESPACES, "pid") if plain else _OWN_NAMESPACES
    name, pid = "namespaces of its own", (inspected.get("State") or {}).get("Pid")
    try:
        shared = [
            kind
            for kind in kinds
            if Path(f"/proc/{pid}/ns/{kind}").readlink() == Path(f"/proc/{os.getpid()}/ns/{kind}").readlink()
        ]
    except OSError:
        return Control(name, "outside", None, "this process may not look")
    return Control(name, "outside", not shared, ", ".join(shared) or ", ".join(kinds))
