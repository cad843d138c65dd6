"""A sandbox that runs: its output read, its limits kept, its end awaited or brought about."""

import math
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crucible_worker.engines.artifacts import Collector, dismissal
from crucible_worker.engines.counters import Meter
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.output import Conversation
from crucible_worker.errors import TaskError
from crucible_worker.model import Limits

BOOT_SECONDS = 30.0  # from start to the code's first instruction; a loaded host has been seen to need 5
ARTIFACT_SECONDS = 10.0  # from the code's end to that of its sandbox, however much of the code's time is left
KILL_SECONDS = 10.0  # from our kill to the end of the sandbox
_TICK = 0.2
_CHUNK = 1 << 16


class Cancel(Protocol):
    """Says when a run is not wanted any more, such as an Event."""

    def is_set(self) -> bool:
        """Whether to end it."""


class Witness(Protocol):
    """Who is told of a run as it goes, enough for another process to follow it to its end."""

    def created(self, container: str) -> None:
        """A sandbox is there, and nothing has been heard from it."""

    def heard(self, data: bytes) -> None:
        """Bytes of its attached stream, before they count as output."""

    def started(self, container: str) -> None:
        """The code has started."""

    def said(self, stream: int, data: bytes) -> None:
        """The code has printed something, on stream 1 or 2."""


class Nobody:
    """A witness that needs to know nothing."""

    def created(self, container: str) -> None:
        """Is not noted."""

    def heard(self, data: bytes) -> None:
        """Is not kept."""

    def started(self, container: str) -> None:
        """Is not told."""

    def said(self, stream: int, data: bytes) -> None:
        """Is not passed on."""


@dataclass(slots=True)
class Ends:
    """Why we ended a sandbox, if we did."""

    timed_out: bool = False
    flooded: bool = False
    cancelled: bool = False

    def any(self) -> bool:
        """Whether it was we."""
        return self.timed_out or self.flooded or self.cancelled


class Follower:
    """Follows one sandbox from its attached stream to its end."""

    def __init__(
        self,
        daemon: Daemon,
        container: str,
        limits: Limits,
        cancel: Cancel,
        witness: Witness,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.conversation = Conversation(limits.output_bytes, witness.said)
        self.artifacts = Collector(limits.artifact_bytes)
        self.ends = Ends()
        self._daemon = daemon
        self._container = container
        self.limits = limits
        self._cancel = cancel
        self._witness = witness
        self.meter = meter or Meter()
        self._clock = clock

    def replay(self, heard: Iterable[bytes]) -> None:
        """Take in what somebody else has read before, on another connection."""
        for data in heard:
            self.conversation.feed(data)
        self.conversation.reconnect()

    def read(self, sock: socket.socket, left: float | None = None, on_start: Callable[[], None] = lambda: None) -> None:
        """Read until all has been said, a limit is passed, or the run is cancelled.

        Where the streams end without the supervisor's last word, its sandbox is waited for: the code may go on.

        `left` is how many seconds code that runs already may still take; otherwise its time begins with its start.
        """
        reader = _Reader(sock, self._clock)
        reader.deadline = self._clock() + (BOOT_SECONDS if left is None else left)
        running = left is not None
        dismissed = False
        while (data := reader.read()) is not None:
            if data:
                if not dismissed:
                    self._witness.heard(data)
                self.conversation.feed(data)
            if self.conversation.started and not running:
                running = True
                on_start()
                reader.deadline = self._clock() + self.limits.timeout_seconds
                self.meter.start()
                self._witness.started(self._container)
            if self.conversation.ended and not dismissed:
                # The supervisor waits for this word, so that its sandbox can still be read.
                dismissed = True
                self.meter.take()
                self.conversation.end_output(self.artifacts.feed)
                reader.deadline = max(reader.deadline, self._clock() + ARTIFACT_SECONDS)
                send(sock, dismissal(self.limits.artifact_bytes))
            self.ends.timed_out = reader.late()
            too_much = self.conversation.output_bytes > self.limits.output_limit_bytes
            self.ends.flooded = too_much or self.artifacts.overfull
            self.ends.cancelled = self._cancel.is_set()
            if self.ends.any():
                self.meter.take()
                return
            if dismissed and self.concluded:
                return
        # The code may have closed its streams and gone on.
        self._await_end(reader.deadline)

    def _kill(self) -> TaskError | None:
        """End the sandbox. An engine may refuse what it has half done: whether it has ended decides."""
        try:
            self._daemon.kill(self._container)
        except TaskError as error:
            return error
        return None

    @property
    def concluded(self) -> bool:
        """Whether the supervisor has said all that it has to say: both streams, how it ended, and the artifacts."""
        return self.conversation.complete and self.artifacts.complete

    def _await_end(self, deadline: float) -> None:
        """Wait for a sandbox whose streams have ended; note what came first if that was not its own end."""
        while self._daemon.wait(self._container, min(max(deadline - self._clock(), 0.0), 1.0)) is None:
            self.ends.cancelled = self._cancel.is_set()
            self.ends.timed_out = self._clock() >= deadline
            if self.ends.any():
                return

    def finish(self) -> tuple[int | None, Mapping[str, Any]]:
        """The exit code and final state of the sandbox, ended by force if it is not at its end.

        Its streams must be closed by then: the daemon does not finish a kill while output waits for a reader.
        """
        refused = self._kill() if self.ends.any() else None
        exit_code = self._daemon.wait(self._container, KILL_SECONDS)
        if refused and exit_code is None:
            raise refused
        inspected = self._daemon.inspect(self._container) or {}
        return exit_code, inspected.get("State") or {}


def send(sock: socket.socket, message: bytes) -> None:
    """Send all of a message. A sandbox that has ended already tells its reason on the way back."""
    sock.settimeout(BOOT_SECONDS)
    try:
        sock.sendall(message)
    except OSError:
        return


class _Reader:
    """Reads a socket until its end, never waiting past a tick or the deadline, so that its user can look around."""

    def __init__(self, sock: socket.socket, clock: Callable[[], float]) -> None:
        self.deadline = math.inf
        self._sock = sock
        self._clock = clock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        sock.settimeout(0)

    def late(self) -> bool:
        return self._clock() >= self.deadline

    def read(self) -> bytes | None:
        """The next bytes; none where nothing came in time; None at the end of the stream."""
        wait = min(max(self.deadline - self._clock(), 0.0), _TICK)
        if not self._poll.poll(math.ceil(wait * 1000)):
            return b""
        try:
            return self._sock.recv(_CHUNK) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None
