"""What the worker reads from a sandbox: Docker's multiplexed stream, our conversation in it, bounded capture."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from crucible_worker.engines.tee import Tee
from crucible_worker.model import Captured

STDOUT, STDERR = 1, 2
_SECRET = 16
_PREFIX = 1 + 1 + _SECRET
_TRAILER = _SECRET + 2


class Demultiplexer:
    """Splits an attached stream into (stream, bytes): 8-byte headers, then payload (Docker API, ContainerAttach)."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Take in bytes as they come, cut anywhere; yield their payloads."""
        view = memoryview(data)
        while view:
            if not self._left:
                need = 8 - len(self._header)
                self._header += bytes(view[:need])
                view = view[need:]
                if len(self._header) == 8:
                    self._stream, self._left = struct.unpack(">BxxxL", self._header)
                    self._header = b""
                continue
            payload = view[: self._left]
            self._left -= len(payload)
            view = view[len(payload) :]
            yield self._stream, payload


class Capture:
    """Keeps at most `limit` bytes of a stream, the first half and the last, and counts them all."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()  # once it is full, a ring
        self._oldest = 0
        self.total = 0

    def add(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the stream."""
        self.total += len(data)
        for half in (self._head, self._tail):
            room = self._half - len(half)
            if room > 0:
                half.extend(data[:room])
                data = data[room:]
        data = data[-self._half :]
        while data:
            piece = data[: self._half - self._oldest]
            end = self._oldest + len(piece)
            self._tail[self._oldest : end] = piece
            self._oldest = end % self._half
            data = data[len(piece) :]

    def take(self) -> Captured:
        """What was kept, with a line between head and tail that counts what was not. The capture is empty then."""
        head, tail = self._head, self._tail[self._oldest :] + self._tail[: self._oldest]
        self._head, self._tail = bytearray(), bytearray()
        if self.total == len(head) + len(tail):
            return Captured(b"".join((head, tail)), self.total)
        head, tail = _whole_characters(head, tail)
        omitted = self.total - len(head) - len(tail)
        parts = (head, b"\n[... %d bytes omitted ...]\n" % omitted, tail)
        return Captured(b"".join(parts), self.total, truncated=True)


def _whole_characters(head: bytearray, tail: bytearray) -> tuple[bytearray, bytearray]:
    """Both sides of a cut without the halves of a UTF-8 character that it went through."""
    for back in range(1, min(4, len(head)) + 1):
        byte = head[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        if length > back:
            head = head[:-back]
        break
    start = next((i for i, byte in enumerate(tail[:3]) if byte & 0xC0 != 0x80), 3)
    return head, tail[start:]


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the supervisor in the sandbox said of the code's end: an exit code, or the signal that killed it."""

    exit_code: int | None = None
    signal: int | None = None

    @property
    def exit_status(self) -> int | None:
        """The exit code that the supervisor itself then ends with, as the daemon sees it."""
        return self.exit_code if self.signal is None else 128 + self.signal


class Conversation:
    """Follows one sandbox's side of the protocol that `boot` describes, and captures the rest as output."""

    def __init__(self, limit: int, said: Callable[[int, bytes], None] = lambda *_: None) -> None:
        """`said` gets the code's output as it comes, with the number of its stream."""
        self.stdout = Capture(limit)
        self.stderr = Capture(limit)
        self._tees = {stream: Tee(partial(said, stream)) for stream in (STDOUT, STDERR)}
        self._demultiplexer = Demultiplexer()
        self._prefix = b""
        self._held = b""
        self._held_error = b""
        self._rest: Callable[[memoryview], None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the interpreter in the sandbox is up."""
        return self._prefix[:1] == b"R"

    @property
    def started(self) -> bool:
        """Whether the code has been started."""
        return len(self._prefix) == _PREFIX and self._prefix[:2] == b"RS"

    @property
    def ended(self) -> bool:
        """Whether the code seems to have ended: the last bytes so far are the supervisor's trailer."""
        return self.started and len(self._held) == _TRAILER and self._held.startswith(self._prefix[2:])

    @property
    def complete(self) -> bool:
        """Whether both streams have come to their ends: the supervisor writes its mark behind either."""
        return self.ended and self._held_error == self._prefix[2:]

    @property
    def output_bytes(self) -> int:
        """Bytes of both streams so far."""
        return self.stdout.total + self.stderr.total

    def feed(self, data: bytes) -> None:
        """Take in bytes of the attached stream."""
        for stream, payload in self._demultiplexer.feed(data):
            if stream == STDERR:
                self._held_error = _all_but(_SECRET, self.stderr, self._held_error, payload)
                self._pass_on(STDERR, payload)
            elif stream == STDOUT:
                self._stdout(payload)

    def reconnect(self) -> None:
        """What comes next is of another connection, whose stream begins with a header."""
        self._demultiplexer = Demultiplexer()

    def end_output(self, rest: Callable[[memoryview], None]) -> None:
        """The trailer has been answered: what comes from now on is no output, and goes to `rest`."""
        self._rest = rest

    def _stdout(self, payload: memoryview) -> None:
        if self._rest is not None:
            self._rest(payload)
            return
        need = _PREFIX - len(self._prefix)
        if need:
            self._prefix += bytes(payload[:need])
            payload = payload[need:]
        self._pass_on(STDOUT, payload)
        self._held = _all_but(_TRAILER, self.stdout, self._held, payload)

    def trailer(self) -> Trailer | None:
        """What the supervisor has said of the end, if the last bytes so far are its trailer."""
        kind, value = self._held[_SECRET : _SECRET + 1], self._held[-1:]
        if not self.ended or kind not in {b"E", b"K"}:
            return None
        return Trailer(exit_code=value[0]) if kind == b"E" else Trailer(signal=value[0])

    def _pass_on(self, stream: int, payload: memoryview) -> None:
        if self.started and payload:
            self._tees[stream].feed(payload, self._prefix[2:])

    def finish(self) -> Trailer | None:
        """Call once at the end of the stream. Returns the supervisor's trailer, if its last bytes are one."""
        for tee in self._tees.values():
            tee.finish(self._prefix[2:])
        trailer = self.trailer()
        held, self._held = self._held, b""
        error, self._held_error = self._held_error, b""
        if not self.started or error != self._prefix[2:]:
            self.stderr.add(error)
        if trailer is not None:
            return trailer
        if self.started:
            self.stdout.add(held)
        else:
            # Not our program wrote this but the runtime or the image: it belongs with the errors.
            self.stderr.add(self._prefix[self.ready :])
            self.stderr.add(self.stdout.take().data)
            self.stderr.add(held)
            self.stdout = Capture(0)
        return None


def _all_but(size: int, capture: Capture, held: bytes, payload: memoryview) -> bytes:
    """Capture what was held and what has come now, but for the last `size` bytes of it, which are returned."""
    if len(payload) < size:
        held, payload = held + bytes(payload), memoryview(b"")
        capture.add(held[:-size])
        return held[-size:]
    capture.add(held)
    capture.add(payload[:-size])
    return bytes(payload[-size:])
