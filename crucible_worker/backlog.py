"""Output of one task that waits to be sent: in order, with what was left out in its place. Takes no locks."""

import codecs
import datetime as dt
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from crucible_worker.model import rfc3339

TASK_BYTES = 256 << 10  # of one task that may wait to be sent
MESSAGE_BYTES = 32 << 10  # of output in one message
STDERR = 2


@dataclass(slots=True)
class _Part:
    """Bytes of one stream as they were heard; or, where there are none, how many have been left out."""

    stream: int
    at: dt.datetime
    data: bytes = b""
    omitted: int = 0


@dataclass(slots=True)
class _Decoders:
    """One for each stream: a character may come in pieces."""

    of: dict[int, codecs.IncrementalDecoder] = field(default_factory=dict)

    def decode(self, stream: int, data: bytes) -> str:
        if stream not in self.of:
            self.of[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        return self.of[stream].decode(data)

    def rest(self) -> str:
        """What was begun and not ended; nothing is begun afterwards."""
        text = "".join(decoder.decode(b"", final=True) for decoder in self.of.values())
        self.of.clear()
        return text


class Backlog:
    """Parts of both streams of one task, and the messages that they become."""

    def __init__(self, eval_id: str, worker_id: str) -> None:
        self._eval_id = eval_id
        self._worker_id = worker_id
        self._parts: deque[_Part] = deque()
        self._decoders = _Decoders()
        self.sequence = 0
        self.held = 0
        self.finished = False

    def add(self, stream: int, data: bytes, room: int) -> int:
        """Keep what there is room for. Returns how many bytes were left out."""
        taken = data[: max(min(room, TASK_BYTES - self.held), 0)]
        if taken:
            self._parts.append(_Part(stream, dt.datetime.now(dt.UTC), taken))
            self.held += len(taken)
        omitted = len(data) - len(taken)
        if omitted:
            self._omit(omitted)
        return omitted

    def _omit(self, count: int) -> None:
        if self._parts and self._parts[-1].omitted:
            self._parts[-1].omitted += count
        else:
            self._parts.append(_Part(STDERR, dt.datetime.now(dt.UTC), omitted=count))

    def lost(self, count: int) -> None:
        """Messages that tell of so many bytes could not be sent."""
        self._parts.appendleft(_Part(STDERR, dt.datetime.now(dt.UTC), omitted=count))

    def take(self) -> tuple[list[dict[str, Any]], int]:
        """Messages to send now, and how many bytes of output they tell of."""
        messages: list[dict[str, Any]] = []

        def add(stream: int, at: dt.datetime, content: str, *, final: bool = False) -> None:
            if content or final:
                messages.append(
                    {
                        "eval_id": self._eval_id,
                        "sequence": self.sequence,
                        "timestamp": rfc3339(at),
                        "content": content,
                        "executor_id": self._worker_id,
                        "is_final": final,
                        "stream": "stderr" if stream == STDERR else "stdout",
                    }
                )
                self.sequence += 1

        size = omitted = 0
        while self._parts and size < 8 * MESSAGE_BYTES:
            part = self._parts.popleft()
            if part.omitted:
                omitted += part.omitted
                add(part.stream, part.at, f"{self._decoders.rest()}\n[... {part.omitted} bytes omitted ...]\n")
                continue
            data = part.data
            while (
                self._parts
                and self._parts[0].stream == part.stream
                and self._parts[0].data
                and len(data) < MESSAGE_BYTES
            ):
                data += self._parts.popleft().data
            if len(data) > MESSAGE_BYTES:
                self._parts.appendleft(_Part(part.stream, part.at, data[MESSAGE_BYTES:]))
                data = data[:MESSAGE_BYTES]
            size += len(data)
            add(part.stream, part.at, self._decoders.decode(part.stream, data))
        self.held -= size
        if self.finished and not self._parts:
            add(1, dt.datetime.now(dt.UTC), self._decoders.rest(), final=True)
        return messages, size + omitted

    @property
    def waiting(self) -> bool:
        """Whether there is something to say."""
        return bool(self._parts) or self.finished
