"""Processes of this host that are provably a sandbox's own: they carry its id, 256 random bits."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc")
Belongs = Callable[[Path, str], bool]


def of_container(container: str) -> list[int]:
    """The ids of the processes of a container. None are found where the daemon is on another host."""
    return _found(container, _is_within)


def kill(container: str) -> list[int]:
    """Kill what is left of a container. Returns the processes that were."""
    return _killed(container, _is_within)


def kill_shim(container: str) -> list[int]:
    """Kill what containerd has beside a container that never started, and leaves behind where that was gVisor's fault.

    Seen with Docker 20.10: 14 MB each time, until the host starts again. Returns the processes that were.
    """
    return _killed(container, _is_shim)


def _found(container: str, belongs: Belongs) -> list[int]:
    if len(container) != 64:
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal() and belongs(entry, container)]


def _killed(container: str, belongs: Belongs) -> list[int]:
    killed = []
    for pid in _found(container, belongs):
        # Held by a descriptor and looked at again, so that no other process can have taken the number meanwhile.
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if belongs(_PROC / str(pid), container):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(handle)
    return killed


def _is_within(entry: Path, container: str) -> bool:
    try:
        return container in (entry / "cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended
        return False


def _is_shim(entry: Path, container: str) -> bool:
    try:
        command = (entry / "cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return b"/containerd-shim" in command.partition(b"\0")[0] and f"\0-id\0{container}\0".encode() in command
