import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from crucible_worker.model import Reason

PROBE = Path(__file__).with_name("hostile_probe.py").read_text(encoding="utf-8")
LIMITS = {"memory_bytes": 96 << 20, "tmp_bytes": 8 << 20, "processes": 32, "timeout_seconds": 20.0}
REFUSALS = {
    "EACCES", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENODEV",
    "ENOENT", "ENOSPC", "ENOSYS", "ENOTSUP", "ENXIO", "EOPNOTSUPP", "EPERM", "EPROTONOSUPPORT", "EROFS",
    "ESOCKTNOSUPPORT", "signal 9",
}  # fmt: skip
# gVisor's kernel serves these itself: what they change is its own, and ends with it.
SERVED_BY_GVISOR = {
    "new user namespace", "new mount namespace", "born into a user namespace", "born into a network", "/dev/fuse",
    "priority",
}  # fmt: skip
DEVICES = {
    "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
    "urandom", "zero",
}  # fmt: skip
GVISOR_DEVICES = {"fuse", "net"}
# Root's, and too small for anything; a file with nothing in it.
PODMANS_MOUNTS = {"/run", "/var/tmp", "/run/.containerenv"}


class Host:
    """What code in a sandbox must not reach: listeners on this host, and a secret that only the worker has."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self._tcp = socket.create_server(("0.0.0.0", 0))
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind(f"\0crucible-{self.secret}")
        self._abstract.listen()

    def stdin(self, *, gentle: bool) -> str:
        """What the probe is told of it."""
        name = self._abstract.getsockname().decode().lstrip("\0")
        port = self._tcp.getsockname()[1]
        return json.dumps({"port": port, "abstract": name, "secret": self.secret[::-1], "gentle": gentle} | LIMITS)

    def close(self) -> None:
        self._tcp.close()
        self._abstract.close()

    def weaknesses(self, bench, **limits) -> dict[str, object]:
        """Run the probe in a sandbox; what it found open, by the name of the control that should have held."""
        plain = bench.plain
        inspected: list[dict] = []
        run = bench(
            PROBE,
            self.stdin(gentle=not plain),
            on_start=lambda name: inspected.append(bench.daemon.inspect(name)),
            **LIMITS | limits,
        )
        if run.verdict.reason is not Reason.EXITED:
            return {"verdict": (run.verdict, run.peak_memory_bytes, run.stderr.data[-500:])}
        facts = json.loads(run.stdout.data)
        return dict(_weaknesses(facts, plain, self.secret)) | dict(_seen_outside(inspected[0], self.secret))


def _weaknesses(facts: dict, plain: bool, secret: str) -> Iterator[tuple[str, object]]:
    served = set() if plain else SERVED_BY_GVISOR
    for name, outcome in facts["attempts"].items():
        if outcome not in REFUSALS and name not in served:
            yield name, outcome
    tmpfs = {"rw", "nosuid", "nodev", "noexec"} if plain else {"rw"}
    limits = {"CORE": [0, 0], "RTPRIO": [0, 0], "NICE": [0, 0], "NOFILE": [256, 256], "FSIZE": [64 << 20, 64 << 20]}
    expected = {
        "user": set(facts["ids"]) == {65534},
        "capabilities": {int(value, 16) for value in facts["capabilities"]} == {0},
        "no new privileges": facts["no_new_privs"] == 1,
        "seccomp": (facts["seccomp"], facts["seccomp_filters"] > 1) == ("2", True) or not plain,
        "read-only root": not plain or "ro" in facts["mounts"]["/"],
        "tmpfs": all(tmpfs <= set(facts["mounts"][path] or ()) for path in ("/sandbox", "/tmp")),
        "nothing mounted": set(facts["mounted"])
        <= {"/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/sandbox", "/tmp"} | PODMANS_MOUNTS,
        "devices": set(facts["devices"]) <= DEVICES | (set() if plain else GVISOR_DEVICES),
        "interfaces": facts["interfaces"] in (["lo"], []),
        "host name": facts["host_name"] == "sandbox",
        "processes of others": facts["processes"] <= 3,
        "descriptors": facts["descriptors"] == [0, 1, 2],
        "environment": set(facts["environment"]) <= {"PATH", "HOME", "HOSTNAME", "LANG", "TMPDIR", "container"},
        "secret": facts["secret"] == [] and secret not in json.dumps(facts),
        "root of 1": facts["root_of_1"],
        "setuid files": facts["setuid_files"] == [],
        "state of others": facts["left_by_others"] == [],
    } | {f"limit {name}": facts["limits"][name] == value for name, value in limits.items()}
    if plain:
        expected |= {
            "oom score": facts["oom_score_of_1"] == "500",
            "swap": facts["memory_and_swap"] in (str(LIMITS["memory_bytes"]), "0"),
            "oom killer": facts["oom_control"] in (None, "oom_kill_disable 0"),
            "cpu": facts["cpu"] in ("100000", "100000 100000"),
        }
        for name, inode in facts["namespaces"].items():
            expected[f"{name} namespace"] = inode != str(Path(f"/proc/self/ns/{name}").readlink())
    yield from ((name, "weakened") for name, holds in expected.items() if not holds)


def _seen_outside(inspected: dict, secret: str) -> Iterator[tuple[str, object]]:
    if inspected.get("LogPath"):
        yield "log", inspected["LogPath"]
    if secret in json.dumps(inspected):
        yield "secret", "in the container's configuration"


@pytest.fixture
def host(monkeypatch) -> Iterator[Host]:
    """This host with a worker's key in its environment."""
    with contextlib.closing(Host()) as found:
        monkeypatch.setenv("API_KEY", found.secret)
        yield found
