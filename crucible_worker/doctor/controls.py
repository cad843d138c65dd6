"""Each control of a sandbox, judged by what was seen of it from inside and from outside. Pure."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crucible_worker.doctor.checks import Status
from crucible_worker.doctor.outside import Outside
from crucible_worker.engines import podman
from crucible_worker.engines.policy import SUPERVISOR_OOM_SCORE
from crucible_worker.model import Limits

# An attempt that ended with one of these was refused; one that ended otherwise, or not at all, was not.
REFUSALS = frozenset(
    {
        "EACCES", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "EINVAL",
        "ENETUNREACH", "ENODEV", "ENOENT", "ENOMEM", "ENOSPC", "ENOSYS", "ENOTDIR", "ENOTSUP", "ENXIO",
        "EOPNOTSUPP", "EPERM", "EPROTONOSUPPORT", "EROFS", "ESOCKTNOSUPPORT", "signal 9",
    }
)  # fmt: skip
DEVICES = frozenset(
    {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
        "tty", "urandom", "zero",
    }
)  # fmt: skip
GVISOR_DEVICES = frozenset({"fuse", "net"})  # of its own kernel, not of the host's
MOUNTED = frozenset({"/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/sandbox", "/tmp"})  # noqa: S108
KERNELS = ("/proc", "/sys", "/dev")
ENVIRONMENT = frozenset({"PATH", "HOME", "HOSTNAME", "LANG", "TMPDIR"})
TMPFS = ("/sandbox", "/tmp")  # noqa: S108 - in the sandbox
ADVISORY = frozenset({"accounting"})  # keeps nobody in
FLAGS = frozenset({"nosuid", "nodev"})


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was seen of one sandbox, on Podman or not. `environment` are the variables that its image declares."""

    inside: Mapping[str, Any]
    outside: Outside
    limits: Limits
    environment: frozenset[str]
    podman: bool
    secrets: frozenset[str]
    heard: bool  # somebody connected to what the host listens at
    left: tuple[str, ...]  # of the sandbox, afterwards
    accounted: bool

    @property
    def plain(self) -> bool:
        """Whether the host's own kernel ran the code, and no other in between."""
        return bool(self.inside["plain"])


@dataclass(frozen=True, slots=True)
class Control:
    """One control: whether it holds, how that was checked (inside, outside, both), and what was found otherwise."""

    name: str
    status: Status
    how: str
    found: str = ""


# What is wrong, seen from one side; None where that side cannot tell.
Side = list[str] | None


def judge(seen: Seen) -> list[Control]:
    """Every control, in order."""
    return [_control(name, look(seen), seen) for name, look in LOOKS.items()]


def _control(name: str, sides: tuple[Side, Side], seen: Seen) -> Control:
    tried = seen.inside["attempts"].get(name)
    inside, outside = sides
    if tried is not None:
        inside = [*(inside or []), *(f"{what}: {end}" for what, end in tried.items() if end not in REFUSALS)]
    how = {(False, True): "outside", (True, False): "inside", (True, True): "both"}.get(
        (inside is not None, outside is not None), "-"
    )
    troubles = [*(inside or []), *(outside or [])]
    if how == "-":
        return Control(name, Status.SKIP, how, "neither side can tell on this host")
    broken = Status.WARN if name in ADVISORY else Status.FAIL
    return Control(name, broken if troubles else Status.PASS, how, "; ".join(troubles))


def _wrong(pairs: Iterable[tuple[str, bool]]) -> list[str]:
    """The words of those that do not hold."""
    return [words for words, holds in pairs if not holds]


def _user(seen: Seen) -> tuple[Side, Side]:
    status = seen.outside.status
    ids = {i for line in ("Uid", "Gid", "Groups") for i in status.get(line, "").split()} if status else set()
    return (
        _wrong([(f"ids {seen.inside['ids']}", seen.inside["ids"] == [65534])]),
        None if status is None else _wrong([("root on the host", "0" not in ids)]),
    )


def _capabilities(seen: Seen) -> tuple[Side, Side]:
    inside = [f"{kind} {value:x}" for kind, value in seen.inside["capabilities"].items() if value]
    status = seen.outside.status
    if status is None or not seen.plain:  # gVisor's kernel has some, in a user namespace of its own
        return inside, None
    return inside, [f"{key} {value.strip()}" for key, value in status.items() if key[:3] == "Cap" and int(value, 16)]


def _no_new_privileges(seen: Seen) -> tuple[Side, Side]:
    status = seen.outside.status
    return (
        _wrong([("not set", seen.inside["no_new_privs"] == 1)]),
        None if status is None else _wrong([("not set on its first process", status["NoNewPrivs"].strip() == "1")]),
    )


def _seccomp(seen: Seen) -> tuple[Side, Side]:
    status = seen.outside.status
    # One filter is our own supervisor's, and refuses less than an engine's.
    filtered = seen.inside["seccomp"] == 2 and seen.inside["seccomp_filters"] > 1
    return (
        _wrong([("no filter of the engine's", filtered)]) if seen.plain else [],
        None if status is None else _wrong([("no filter on its first process", status["Seccomp"].strip() == "2")]),
    )


def _root(seen: Seen) -> tuple[Side, Side]:
    mounts = seen.outside.mounts
    return [], None if mounts is None else _wrong([("mounted writable", "ro" in mounts.get("/", ()))])


def _flags(seen: Seen) -> tuple[Side, Side]:
    if not seen.plain:  # its kernel knows no set-id files and no devices of the host, and tells of neither flag
        return None, _asked(seen, "Tmpfs", lambda tmpfs: all(set(tmpfs.get(p, "").split(",")) >= FLAGS for p in TMPFS))
    mounts = seen.outside.mounts
    return (
        _wrong((f"{path} lacks nosuid or nodev", set(seen.inside["mounts"].get(path, ())) >= FLAGS) for path in TMPFS),
        None
        if mounts is None
        else _wrong((f"{p} lacks nosuid or nodev", mounts.get(p, set()) >= FLAGS) for p in TMPFS),
    )


def _asked(seen: Seen, key: str, holds: Callable[[Any], bool]) -> Side:
    value = seen.outside.inspected["HostConfig"].get(key)
    return _wrong([(f"{key} is {value!r}", holds(value))])


def _nothing(_seen: Seen) -> tuple[Side, Side]:
    return [], None


def _network(seen: Seen) -> tuple[Side, Side]:
    inside = [f"interface {name}" for name in seen.inside["interfaces"] if name != "lo"]
    own = seen.outside.own
    return inside, None if own is None else _wrong([("the host's network namespace", own["net"])])


def _loopback(seen: Seen) -> tuple[Side, Side]:
    return [], _wrong([("the host was reached", not seen.heard)])


def _namespaces(seen: Seen) -> tuple[Side, Side]:
    inside = _wrong(
        [
            (f"{seen.inside['processes']} processes to be seen", seen.inside["processes"] <= 3),
            (f"host name {seen.inside['host_name']}", seen.inside["host_name"] == "sandbox"),
        ]
    )
    own = seen.outside.own
    # gVisor's processes have their own kernel, which needs these of the host's and no more.
    wanted = ("cgroup", "ipc", "mnt", "pid", "uts") if seen.plain else ("ipc", "mnt", "user", "uts")
    return inside, None if own is None else _wrong((f"the host's {name} namespace", own[name]) for name in wanted)


def _memory(seen: Seen) -> tuple[Side, Side]:
    text = _limit(seen, "memory")
    return _tried(seen, "memory"), None if text is None else _wrong(
        [(f"limit {text}", text == str(seen.limits.memory_bytes))]
    )


def _swap(seen: Seen) -> tuple[Side, Side]:
    text = _limit(seen, "swap")
    wanted = "0" if seen.outside.version == 2 else str(seen.limits.memory_bytes)
    if text is None:  # a kernel without accounting of swap
        return None, _asked(seen, "MemorySwap", lambda value: value == seen.limits.memory_bytes)
    return None, _wrong([(f"limit {text}", text == wanted)])


def _cpu(seen: Seen) -> tuple[Side, Side]:
    words = (
        [_limit(seen, "cpu"), _limit(seen, "period")]
        if seen.outside.version == 1
        else (_limit(seen, "cpu") or "").split()
    )
    if not words or words[0] is None:
        return None, _asked(seen, "NanoCpus", bool)
    numbers = [int(word) for word in words if word and word.lstrip("-").isdecimal()]
    fits = len(numbers) == 2 and 0 < numbers[0] / numbers[1] <= max(seen.limits.cpus, 0.01) * 1.01
    return None, _wrong([(f"quota {' of '.join(str(word) for word in words)}", fits)])


def _processes(seen: Seen) -> tuple[Side, Side]:
    text, asked = _limit(seen, "processes"), seen.outside.inspected["HostConfig"].get("PidsLimit")
    if text is None:
        return _tried(seen, "processes"), None
    return _tried(seen, "processes"), _wrong([(f"limit {text}", bool(asked) and text == str(asked))])


def _ulimits(seen: Seen) -> tuple[Side, Side]:
    wanted = {"nofile": seen.limits.open_files, "core": 0, "fsize": seen.limits.file_bytes, "rtprio": 0, "nice": 0}
    inside = [f"{name} {value}" for name, value in seen.inside["limits"].items() if set(value) != {wanted[name]}]
    limits = seen.outside.limits
    if limits is None or not seen.plain:  # gVisor's kernel keeps them itself
        return inside, None
    names = {
        "nofile": "Max open files", "core": "Max core file size", "fsize": "Max file size",
        "rtprio": "Max realtime priority", "nice": "Max nice priority",
    }  # fmt: skip
    return inside, [
        f"{key} {limits.get(row)}" for key, row in names.items() if set(limits.get(row, ())) != {str(wanted[key])}
    ]


def _mounts(seen: Seen) -> tuple[Side, Side]:
    known = MOUNTED | (podman.MOUNTS if seen.podman else frozenset())
    inside = [path for path in seen.inside["mounts"] if not path.startswith(KERNELS) and path not in known]
    return inside, [f"{mount.get('Destination')} of the host" for mount in seen.outside.inspected.get("Mounts") or ()]


def _devices(seen: Seen) -> tuple[Side, Side]:
    known = DEVICES | (frozenset() if seen.plain else GVISOR_DEVICES)
    return (
        [f"/dev/{name}" for name in seen.inside["devices"] if name not in known],
        _asked(seen, "Devices", lambda value: not value) or _asked(seen, "Privileged", lambda value: not value),
    )


def _environment(seen: Seen) -> tuple[Side, Side]:
    known = ENVIRONMENT | seen.environment | (podman.VARIABLES if seen.podman else frozenset())
    inside = [name for name in seen.inside["environment"] if name not in known]
    told = json.dumps(seen.outside.inspected)
    return inside, _wrong([("a secret in its configuration", not any(secret in told for secret in seen.secrets))])


def _supervisor(seen: Seen) -> tuple[Side, Side]:
    score = seen.inside["oom_score_of_1"]
    return _wrong([(f"OOM score {score}", score == str(SUPERVISOR_OOM_SCORE) or not seen.plain)]), None


def _descriptors(seen: Seen) -> tuple[Side, Side]:
    return [f"descriptor {fd}" for fd in seen.inside["descriptors"] if fd > 2], None


def _clean(seen: Seen) -> tuple[Side, Side]:
    return [f"{name} was there" for name in seen.inside["left"]], list(seen.left)


def _no_log(seen: Seen) -> tuple[Side, Side]:
    path = seen.outside.inspected.get("LogPath")
    return None, _wrong([(f"what it prints is kept in {path}", not path)])


def _accounting(seen: Seen) -> tuple[Side, Side]:
    return None, _wrong([("neither CPU time nor peak memory is known (null in results)", seen.accounted)])


def _limit(seen: Seen, name: str) -> str | None:
    return seen.outside.cgroup.get(name) if seen.outside.cgroup else None


def _tried(seen: Seen, name: str) -> Side:
    return [] if name in seen.inside["attempts"] else None


LOOKS: Mapping[str, Callable[[Seen], tuple[Side, Side]]] = {
    "user": _user,
    "capabilities": _capabilities,
    "no-new-privileges": _no_new_privileges,
    "seccomp": _seccomp,
    "read-only root": _root,
    "tmpfs nosuid, nodev": _flags,
    "tmpfs noexec": _nothing,
    "tmpfs size": _nothing,
    "no network": _network,
    "host loopback": _loopback,
    "namespaces": _namespaces,
    "memory": _memory,
    "swap": _swap,
    "cpu": _cpu,
    "processes": _processes,
    "files and core dumps": _ulimits,
    "no mounts": _mounts,
    "no devices": _devices,
    "no engine socket": _nothing,
    "kernel files": _nothing,
    "supervisor": _supervisor,
    "descriptors": _descriptors,
    "environment": _environment,
    "no log on the host": _no_log,
    "nothing left behind": _clean,
    "accounting": _accounting,
}
