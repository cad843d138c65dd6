"""Processes of this host that are provably a sandbox's own: their cgroup carries its id, 256 random bits."""

import contextlib
import os
import signal
from pathlib import Path

_PROC = Path("/proc")


def of_container(container: str) -> list[int]:
    """The ids of the processes of a container. None are found where the daemon is on another host."""
    if len(container) != 64:
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal() and _belongs(entry, container)]


def kill(container: str) -> list[int]:
    """Kill what is left of a container. Returns the processes that were."""
    killed = []
    for pid in of_container(container):
        # Held by a descriptor and looked at again, so that no other process can have taken the number meanwhile.
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                if _belongs(_PROC / str(pid), container):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(handle)
    return killed


def _belongs(entry: Path, container: str) -> bool:
    try:
        return container in (entry / "cgroup").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended
        return False
