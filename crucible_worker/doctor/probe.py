"""The program of the self-test: tries in a sandbox what must not work there, and prints what became of it.

Sent as text to whatever Python the image has; harmless where an attempt succeeds. Its stdin is a JSON object: `kernel`
is the host's, `port` and `abstract` are where the host listens, `memory` and `processes` are the sandbox's limits,
`filled` is more than its tmpfs may hold, and `executable` says where programs may be executed.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

ARM = platform.machine() == "aarch64"
# asm/unistd_64.h and asm-generic/unistd.h
NUMBERS = {
    "add_key": (248, 217), "bpf": (321, 280), "io_uring_setup": (425, 425), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282),
}  # fmt: skip
NEW_USER, NEW_NAMESPACES, PTRACE_ATTACH, GET_NO_NEW_PRIVS = 0x10000000, 0x40020000, 16, 39
SOCKETS = ("docker.sock", "containerd/containerd.sock", "podman/podman.sock", "crio/crio.sock")
WRITABLE = ("/tmp", "/dev/shm", "/sandbox")
LIMITS = {name: getattr(resource, f"RLIMIT_{name.upper()}") for name in ("core", "nofile", "fsize", "rtprio", "nice")}
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def call(name: str, *arguments: Any) -> None:
    checked(libc.syscall(NUMBERS[name][ARM], *arguments))


def connected(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(1)
        sock.connect(address)
        sock.send(b"out")


def reached(*paths: str) -> None:
    for path in paths:
        if os.path.exists(path):
            return
    raise OSError(errno.ENOENT, "")


def written(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def readable(path: str) -> None:
    """Whether a file of the kernel's gives anything; a masked one is empty."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError(errno.ENOENT, "")


def filled(folder: str, size: int) -> None:
    with open(f"{folder}/big", "wb", buffering=0) as file:
        for _ in range(size >> 20):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError(errno.ENOSPC, "")


def executed(folder: str) -> None:
    path = f"{folder}/program"
    with open(path, "w") as file:
        file.write(f"#!{os.path.realpath(sys.executable)}\n")
    os.chmod(path, 0o755)
    os.execve(path, [path], {})


def device(kind: int, major: int, minor: int) -> None:
    path = f"/tmp/device{major}"
    os.mknod(path, kind | 0o666, os.makedev(major, minor))
    os.close(os.open(path, os.O_RDONLY))


def spawned(count: int) -> None:
    """Ask for more processes than there may be; they end with this one's pipe."""
    read, write = os.pipe()
    for _ in range(count):
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)


def attempts(given: dict[str, Any], plain: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    """By control, what it must refuse. Calls that gVisor's kernel serves itself are left out there."""
    tried: dict[str, dict[str, Callable[[], Any]]] = {
        "user": {"become root": lambda: os.setuid(0), "join group root": lambda: os.setgroups([0])},
        "capabilities": {
            "mount": lambda: checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
            "chroot": lambda: os.chroot("/tmp"),
            "set the host name": lambda: socket.sethostname("elsewhere"),
        },
        "seccomp": {
            "userfaultfd": lambda: call("userfaultfd", 0),
            "bpf": lambda: call("bpf", 0, bytes(128), 128),
            "perf_event_open": lambda: call("perf_event_open", bytes([1, 0, 0, 0, 128]) + bytes(123), 0, -1, -1, 0),
            "io_uring": lambda: call("io_uring_setup", 1, ctypes.create_string_buffer(128)),
        },
        "read-only root": {path: partial(written, path) for path in ("/mine", "/etc/mine", "/usr/mine")},
        "tmpfs noexec": {path: partial(executed, path) for path in given["executable"]},
        "tmpfs size": {path: partial(filled, path, given["filled"]) for path in WRITABLE},
        "no network": {
            "gateway": lambda: connected(socket.AF_INET, ("172.17.0.1", given["port"])),
            "metadata": lambda: connected(socket.AF_INET, ("169.254.169.254", 80)),
            "name server": lambda: connected(socket.AF_INET, ("1.1.1.1", 53), socket.SOCK_DGRAM),
            "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
            "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        },
        "host loopback": {
            "127.0.0.1": lambda: connected(socket.AF_INET, ("127.0.0.1", given["port"])),
            "abstract socket": lambda: connected(socket.AF_UNIX, "\0" + given["abstract"]),
        },
        "no devices": {
            "disk": lambda: device(stat.S_IFBLK, 8, 0),
            "memory": lambda: device(stat.S_IFCHR, 1, 1),
            "/dev/kmsg": lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)),
            "/dev/kvm": lambda: os.close(os.open("/dev/kvm", os.O_RDWR)),
        },
        "no engine socket": {
            name: partial(reached, f"/run/{name}", f"/var/run/{name}") for name in SOCKETS
        },
        "kernel files": {
            "core_pattern": lambda: written("/proc/sys/kernel/core_pattern"),
            "sysrq": lambda: written("/proc/sysrq-trigger"),
            "release_agent": lambda: written("/sys/fs/cgroup/memory/release_agent"),
            "kcore": lambda: readable("/proc/kcore"),
            "timer_list": lambda: readable("/proc/timer_list"),
        },
        "supervisor": {
            "trace": lambda: checked(libc.ptrace(PTRACE_ATTACH, 1, None, None)),
            "memory": lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)),
        },
    }  # fmt: skip
    if plain:
        tried["seccomp"] |= {
            "new user namespace": lambda: checked(libc.unshare(NEW_USER)),
            "new namespaces": lambda: checked(libc.unshare(NEW_NAMESPACES)),
            "keyctl": lambda: call("keyctl", 0, -3, 1),
            "add_key": lambda: call("add_key", b"user", b"name", b"value", 5, -3),
        }
        tried["memory"] = {"allocate": lambda: bytearray(b"x" * (given["memory"] * 3 // 2))}
        tried["processes"] = {"fork": lambda: spawned(given["processes"] * 2)}
    return tried


def outcome(act: Callable[[], Any]) -> str:
    """What becomes of an attempt in a process of its own: done, an errno's name, or a signal's number."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(5)
        code = 0
        try:
            act()
        except OSError as error:
            code = error.errno or 254
        except MemoryError:
            code = errno.ENOMEM
        except BaseException:
            code = 255
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for path in (f"{folder}/{name}" for folder in WRITABLE for name in ("big", "program")):
        if os.path.exists(path):
            os.unlink(path)
    return "done" if code == 0 else f"signal {-code}" if code < 0 else errno.errorcode.get(code, f"exit {code}")


def first_line(path: str) -> str:
    with open(path) as file:
        return file.readline().strip()


def facts(plain: bool) -> dict[str, Any]:
    """What the sandbox shows of itself."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    with open("/proc/self/mounts") as file:
        mounts = {line.split()[1]: line.split()[3].split(",") for line in file}
    return {
        "plain": plain,
        "ids": sorted({*os.getresuid(), *os.getresgid(), *os.getgroups()}),
        "capabilities": {
            kind: int(status["Cap" + kind], 16)
            for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")
            if "Cap" + kind in status
        },
        "no_new_privs": libc.prctl(GET_NO_NEW_PRIVS, 0, 0, 0, 0),
        "seccomp": int(status.get("Seccomp", "0")),
        "seccomp_filters": int(status.get("Seccomp_filters", "2")),  # Linux 5.9
        "limits": {name: list(resource.getrlimit(kind)) for name, kind in LIMITS.items()},
        "mounts": mounts,
        "devices": sorted(os.listdir("/dev")),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "oom_score_of_1": first_line("/proc/1/oom_score_adj"),
        "host_name": socket.gethostname(),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "descriptors": [fd for fd in range(1024) if os.path.exists(f"/proc/self/fd/{fd}")],
        "environment": sorted(os.environ),
        "left": [f for folder in WRITABLE for f in os.listdir(folder) if f not in ("main.py", "out")],
    }


def main() -> None:
    """Look first, then try."""
    given = json.loads(sys.stdin.read())
    plain = platform.release() == given["kernel"]
    found = facts(plain)
    found["attempts"] = {
        control: {name: outcome(act) for name, act in tried.items()}
        for control, tried in attempts(given, plain).items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
