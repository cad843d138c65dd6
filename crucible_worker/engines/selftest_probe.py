"""Runs inside a sandbox, and tells what it finds there as one JSON object. Judged outside, in `selftest`."""

import contextlib
import ctypes
import errno
import json
import os
import resource
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PR_GET_NO_NEW_PRIVS = 39  # linux/prctl.h


def attempt(deed: "Callable[[], object]") -> str:
    """What came of it: allowed, or the name of the error that kept it from happening."""
    try:
        deed()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0 where it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def status() -> "dict[str, str]":
    """The lines of this process's status by their names."""
    with open("/proc/self/status") as file:
        pairs = (line.rstrip("\n").partition(":\t") for line in file)
        return {name: value for name, _, value in pairs}


def mounts() -> "dict[str, list[str]]":
    """Options by mount point."""
    with open("/proc/self/mounts") as file:
        return {words[1]: words[3].split(",") for words in map(str.split, file)}


def interfaces() -> "list[str]":
    """The names of the network interfaces."""
    with contextlib.suppress(OSError):
        return [name for _, name in socket.if_nameindex()]
    return []


def write(path: str) -> None:
    """A file with something in it."""
    with open(path, "w") as file:
        file.write("x")


given = json.loads(sys.stdin.read())
own = status()
facts = {
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "capabilities": {name: own.get(name, "").strip() for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")},
    "no_new_privs": ctypes.CDLL(None).prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
    "seccomp": own.get("Seccomp", "").strip(),
    "mounts": {path: options for path, options in mounts().items() if path in ("/", "/sandbox", "/tmp")},
    "interfaces": interfaces(),
    "devices": sorted(os.listdir("/dev")),
    "environment": sorted(os.environ),
    "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "sockets": [path for path in given["sockets"] if os.path.exists(path)],
    "limits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ("NOFILE", "FSIZE", "CORE")},
    "attempts": {
        "write to the root": attempt(lambda: write("/written")),
        "write to /proc": attempt(lambda: write("/proc/sys/kernel/core_pattern")),
        "mount": attempt(lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
        "reach the metadata address": attempt(lambda: socket.create_connection(("169.254.169.254", 80), 2)),
        "reach this host": attempt(lambda: socket.create_connection(("127.0.0.1", given["port"]), 2)),
    },
}
print(json.dumps(facts))
