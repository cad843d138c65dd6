"""The service manager that has started this process, where there is one: sd_notify(3), without its library."""

import os
import socket
import time
from collections.abc import Callable, Mapping

# How often the status line is renewed, at most.
_STATUS_SECONDS = 5.0
# What a stop may take from one beat to the next, and from the last one to our exit.
EXTENSION_SECONDS = 90
# A manager that does not read holds us up for so long at most.
_SEND_SECONDS = 1.0


class Supervisor:
    """Tells the manager that we serve, live and stop, in datagrams to the socket named by NOTIFY_SOCKET.

    Without that variable it does nothing. A manager that cannot be reached costs nothing but one word of it.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        on_trouble: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_trouble` is called with the first error, and not again."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(environ)
        self._on_trouble: Callable[[str], None] | None = on_trouble
        self._clock = clock
        self._interval = min(_STATUS_SECONDS, self._watchdog / 2) if self._watchdog else _STATUS_SECONDS
        self._due = 0.0
        self._draining = False

    def ready(self) -> None:
        """All that serves has been started."""
        self._tell("READY=1")

    def beat(self, status: Callable[[], str], *, draining: bool) -> None:
        """The worker is not stalled. To be called often; it speaks when that is due.

        Feeds the watchdog, at least twice in its time, and extends the time for a stop, as long as we are called.
        """
        now = self._clock()
        begins = draining and not self._draining
        if self._address is None or (now < self._due and not begins):
            return
        self._draining, self._due = draining, now + self._interval
        lines = ["STATUS=" + " ".join(status().split())]
        lines += ["STOPPING=1"] if begins else []
        lines += ["WATCHDOG=1"] if self._watchdog else []
        lines += [f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1_000_000}"] if draining else []
        self._tell(*lines)

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_SECONDS)
                sock.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            if self._on_trouble is not None:
                self._on_trouble(str(error))
            self._on_trouble = None


def _address(name: str) -> str | None:
    """A path, or a name in the abstract namespace, which is written with an @ in place of its NUL."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """By when the watchdog wants to be fed again, if it watches this process."""
    try:
        seconds = int(environ["WATCHDOG_USEC"]) / 1_000_000
        ours = int(environ.get("WATCHDOG_PID") or os.getpid()) == os.getpid()
    except (KeyError, ValueError):
        return None
    return seconds if ours and seconds > 0 else None
