"""What the host sees of a sandbox that runs: the engine's account of it, and its first process in /proc."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
# The files of a cgroup that hold its limits, by version 2 and by version 1 with its controller.
_FILES = {
    "memory": ("memory.max", "memory", "memory.limit_in_bytes"),
    "swap": ("memory.swap.max", "memory", "memory.memsw.limit_in_bytes"),
    "cpu": ("cpu.max", "cpu", "cpu.cfs_quota_us"),
    "period": ("", "cpu", "cpu.cfs_period_us"),
    "processes": ("pids.max", "pids", "pids.max"),
}


@dataclass(frozen=True, slots=True)
class Outside:
    """One sandbox from outside. A part that this process cannot read is None.

    `inspected` is ContainerInspect. `own` says of each namespace whether it is another than ours. `cgroup` holds the
    texts of its limits, and `version` which kind they are.
    """

    inspected: Mapping[str, Any]
    pid: int | None = None
    status: Mapping[str, str] | None = None
    limits: Mapping[str, tuple[str, str]] | None = None
    mounts: Mapping[str, frozenset[str]] | None = None
    own: Mapping[str, bool] | None = None
    version: int = 1
    cgroup: Mapping[str, str] | None = None


def look(inspected: Mapping[str, Any], *, local: bool, proc: Path = PROC, cgroups: Path = CGROUPS) -> Outside:
    """Look at a running sandbox. `local`: its engine is said to run on this host; /proc must agree."""
    pid = int((inspected.get("State") or {}).get("Pid") or 0)
    lines = _lines(proc / str(pid) / "cgroup") if local and pid else None
    # Another host, or another PID namespace, has other processes under that number.
    if lines is None or not any(str(inspected["Id"]) in line for line in lines):
        return Outside(inspected)
    folder = proc / str(pid)
    version, limits = _cgroup(lines, cgroups)
    return Outside(
        inspected=inspected,
        pid=pid,
        status=_status(folder / "status"),
        limits=_limits(folder / "limits"),
        mounts=_mounts(folder / "mountinfo"),
        own=_namespaces(folder / "ns", proc / "self" / "ns"),
        version=version,
        cgroup=limits or None,
    )


def gone(seen: Outside, *, proc: Path = PROC) -> bool:
    """Whether its first process has ended."""
    return seen.pid is None or not (proc / str(seen.pid)).exists()


def _lines(file: Path) -> list[str] | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None


def _status(file: Path) -> Mapping[str, str] | None:
    lines = _lines(file)
    return dict(line.split(":", 1) for line in lines if ":" in line) if lines else None


def _limits(file: Path) -> Mapping[str, tuple[str, str]] | None:
    """(soft, hard) by name; names are padded to column 26 (proc(5))."""
    lines = _lines(file)
    if not lines:
        return None
    return {
        line[:26].strip(): (line[26:].split()[0], line[26:].split()[1]) for line in lines[1:] if line[26:].split()[1:]
    }


def _mounts(file: Path) -> Mapping[str, frozenset[str]] | None:
    """Options by mount point (proc(5), mountinfo)."""
    lines = _lines(file)
    return {line.split()[4]: frozenset(line.split()[5].split(",")) for line in lines} if lines else None


def _namespaces(theirs: Path, ours: Path) -> Mapping[str, bool] | None:
    try:
        return {name: os.readlink(theirs / name) != os.readlink(ours / name) for name in NAMESPACES}  # noqa: PTH115
    except OSError:
        return None


def _cgroup(lines: list[str], root: Path) -> tuple[int, Mapping[str, str]]:
    paths = {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    version = 1 if "memory" in paths else 2
    found = {}
    for limit, (unified, controller, file) in _FILES.items():
        if version == 2:
            text = _lines(root / paths.get("", "").lstrip("/") / unified) if unified else None
        else:
            text = _lines(root / controller / paths.get(controller, "").lstrip("/") / file)
        if text:
            found[limit] = text[0]
    return version, found
