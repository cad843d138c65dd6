"""A cgroup of our own above each sandbox's: the code cannot forge what it counts, and it outlives the sandbox.

Versions 1 and 2 (Linux, Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst).
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_worker.engines.counters import Counters
from crucible_worker.engines.runtimes import is_podman

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuacct", "memory", "pids")
_SYSTEMCTL_SECONDS = 10
_REMOVAL_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.0)


@dataclass(frozen=True, slots=True)
class Tree:
    """Where a daemon keeps its cgroups: below `root`, in one hierarchy (version 2) or in one for each controller."""

    version: int
    systemd: bool
    root: Path = ROOT
    podman: bool = False

    def parent(self, name: str) -> str:
        """The HostConfig.CgroupParent that stands for the cgroup `name`."""
        return f"{name}.slice" if self.systemd else f"/{name}"

    def path(self, name: str) -> str:
        """The cgroup's folder in each hierarchy. systemd puts a-b.slice into a.slice (systemd.slice(5))."""
        return f"{name.partition('-')[0]}.slice/{name}.slice" if self.systemd else name

    def hierarchy(self, controller: str) -> Path:
        """The root of the hierarchy that a controller is in."""
        return self.root if self.version == 2 else self.root / controller

    def hierarchies(self) -> list[Path]:
        """The roots of all hierarchies; the daemon's runtime makes the cgroup in each of them."""
        if self.version == 2:
            return [self.root]
        with contextlib.suppress(OSError):
            return sorted({found.resolve() for found in self.root.iterdir() if found.is_dir()})
        return []

    def daemons_path(self, container: str) -> str:
        """The folder of a container for which no parent was asked, under a daemon's default settings."""
        if self.podman:
            return f"machine.slice/libpod-{container}.scope" if self.systemd else f"libpod_parent/libpod-{container}"
        return f"system.slice/docker-{container}.scope" if self.systemd else f"docker/{container}"

    def counters(self, path: str) -> Counters:
        """What the cgroup in this folder and those below it have counted so far."""
        cpu, memory, pids = (self.hierarchy(controller) / path for controller in _CONTROLLERS)
        if self.version == 2:
            usec = _field(cpu / "cpu.stat", "usage_usec")
            used, peak, oom = None if usec is None else usec * 1000, "memory.peak", "memory.events"
        else:
            used, peak, oom = _number(cpu / "cpuacct.usage"), "memory.max_usage_in_bytes", "memory.oom_control"
        return Counters(
            cpu_ns=used,
            peak_memory_bytes=_number(memory / peak),
            # Version 1 counts these two where they happen, not above.
            oom_kills=_most(memory, oom, "oom_kill"),
            forks_refused=_most(pids, "pids.events", "max"),
            peak_processes=_number(pids / "pids.peak"),
        )

    def make(self, name: str) -> None:
        """Make the cgroup, where that is not systemd's to do. Raises OSError."""
        if self.systemd:
            return
        for controller in _CONTROLLERS:
            folder = self.hierarchy(controller) / self.path(name)
            folder.mkdir(exist_ok=True)
            if (switch := folder / "memory.use_hierarchy").exists():
                # Before Linux 5.11 a cgroup of version 1 counts for those below it only where told to.
                with contextlib.suppress(OSError):
                    switch.write_text("1", encoding="ascii")

    def remove(self, name: str) -> bool:
        """Remove the cgroup, and below it what the runtime has left there. Returns whether it is gone.

        One in use stays: a sandbox in it may have found another worker to look after it.
        """
        if self.pids(name):
            return False
        if self.systemd:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                command = ["systemctl", "stop", f"{name}.slice"]
                subprocess.run(command, capture_output=True, timeout=_SYSTEMCTL_SECONDS, check=False)  # noqa: S603
        gone = True
        for hierarchy in self.hierarchies():
            for folder, _, _ in os.walk(hierarchy / self.path(name), topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    gone = False
        return gone

    def kill(self, name: str) -> None:
        """Kill whatever is in the cgroup."""
        for pid in self.pids(name):
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                try:
                    # Held by now, so that it is no later process of the same number.
                    if pid in self.pids(name):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)

    def pids(self, name: str) -> set[int]:
        """The processes in the cgroup."""
        files = (self.hierarchy("pids") / self.path(name)).glob("**/cgroup.procs")
        return {pid for file in files for pid in _pids(file)}

    def names(self, prefix: str) -> set[str]:
        """The cgroups of ours whose names begin so."""
        pattern = self.path(f"{prefix}*")
        return {found.name.removesuffix(".slice") for base in self.hierarchies() for found in base.glob(pattern)}


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where one sandbox is counted: in a cgroup of our own, or, without a `name`, where its daemon puts it."""

    tree: Tree | None = None
    name: str = ""

    @property
    def parent(self) -> str:
        """The HostConfig.CgroupParent of the sandbox."""
        return self.tree.parent(self.name) if self.tree and self.name else ""

    def counters(self, container: str) -> Counters:
        """What it has counted so far."""
        if self.tree is None:
            return Counters()
        return self.tree.counters(self.tree.path(self.name) if self.name else self.tree.daemons_path(container))


class Cgroups:
    """The cgroups of one worker's sandboxes, where this process may make any; found out at the first one."""

    def __init__(self, owner: str, info: Callable[[], Mapping[str, Any]], url: str, root: Path = ROOT) -> None:
        """`owner` is the worker's id, `info` the daemon's set-up (SystemInfo), `url` where that daemon listens."""
        self._prefix = f"crucible-{hashlib.sha256(owner.encode()).hexdigest()[:12]}_"
        self._info = info
        self._url = url
        self._root = root
        self._lock = threading.Lock()
        self._tree: Tree | None = None
        self._known = False
        self._live: set[str] = set()
        self.trouble: str | None = None

    @contextlib.contextmanager
    def one(self) -> Iterator[Cgroup]:
        """A place for one sandbox; a cgroup made for it is removed in the end. Raises what `info` raises."""
        tree = self._found()
        if tree is None or self.trouble is not None:
            yield Cgroup(tree)
            return
        name = self._prefix + uuid.uuid4().hex
        with self._lock:
            self._live.add(name)
        try:
            with contextlib.suppress(OSError):
                tree.make(name)
            yield Cgroup(tree, name)
        finally:
            for pause in _REMOVAL_PAUSES:
                if tree.remove(name):
                    break
                # The daemon has let go of the sandbox; gVisor has been seen to go on after a start that failed.
                tree.kill(name)
                time.sleep(pause)
            with self._lock:
                self._live.discard(name)

    def give_up(self, why: str) -> None:
        """Make no more of them."""
        self.trouble = self.trouble or why

    def sweep(self) -> None:
        """Remove those that sandboxes of earlier lives have left. One in use, by whomever, stays."""
        tree = self._found()
        if tree is None or self.trouble is not None:
            return
        stale = tree.names(self._prefix)
        with self._lock:
            stale -= self._live
        for name in stale:
            tree.remove(name)

    def _found(self) -> Tree | None:
        with self._lock:
            if not self._known:
                info = self._info()
                self._tree = tree_of(info, self._url, self._root)
                self.trouble = refusal(self._tree) if self._tree else "this host's cgroups are not the Docker Engine's"
                self._known = True
            return self._tree


def tree_of(info: Mapping[str, Any], url: str, root: Path) -> Tree | None:
    """The cgroups of a daemon by its own account (SystemInfo); None where this host's may be others."""
    rootless = info.get("Rootless") or any("rootless" in str(option) for option in info.get("SecurityOptions") or ())
    driver, version = info.get("CgroupDriver"), str(info.get("CgroupVersion") or "1")
    if rootless or not url.startswith("unix://") or driver not in {"cgroupfs", "systemd"} or version not in {"1", "2"}:
        return None
    return Tree(int(version), driver == "systemd", root, is_podman(info))


def refusal(tree: Tree) -> str | None:
    """Why this process may not make cgroups there, tried; None where it may."""
    if tree.systemd:
        asked = shutil.which("systemctl") is not None and os.geteuid() == 0
        return None if asked else "this process may not ask systemd for cgroups"
    trial = f"crucible-trial_{uuid.uuid4().hex}"
    try:
        tree.make(trial)
    except OSError as error:
        return f"this process may not make cgroups: {error.strerror}"
    finally:
        tree.remove(trial)
    return None


def _pids(file: Path) -> set[int]:
    try:
        return {int(line) for line in file.read_text(encoding="ascii").splitlines()}
    except OSError:
        return set()


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _field(file: Path, name: str) -> int | None:
    """A value of a file of lines "name value"."""
    try:
        fields = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
        return int(fields[name])
    except (OSError, ValueError, KeyError):
        return None


def _most(folder: Path, file: str, name: str) -> int | None:
    """The largest value of a field in a cgroup and those below it."""
    found = [_field(Path(at, file), name) for at, _, _ in os.walk(folder)]
    return max((value for value in found if value is not None), default=None)
