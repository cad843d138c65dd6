"""What running tasks print, on its way to whoever watches: in order, bounded, and never waited for by a task."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from crucible_worker.backlog import Backlog
from crucible_worker.errors import KeyRefusedError, RejectedError, RetryError

ALL_BYTES = 4 << 20  # of all tasks together
MOST_STREAMS = 1000  # kept while nobody takes what they have to say
_GATHER_SECONDS = 0.1  # so that many small writes make one message
_PAUSE_SECONDS = 2.0  # after a failure
# A byte is in one message, and perhaps in the note that this one was lost; and there are the attempts that failed
# meanwhile, one every _PAUSE_SECONDS, which makes more than three weeks.
_LIFE = 1_000_000


class Sink(Protocol):
    """Who is told."""

    def send(self, eval_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Tell of one task, in order. Raises RetryError, KeyRefusedError, or RejectedError where that is no use."""


class Log(Protocol):
    """Structured log lines."""

    def info(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something happened."""

    def warning(self, event: str, **values: Any) -> Any:  # noqa: ANN401
        """Something is not as it should be."""


class Stream:
    """The output of one task in this worker's hands. Its methods return at once."""

    def __init__(self, logs: "LiveLogs", eval_id: str, worker_id: str) -> None:
        self.eval_id = eval_id
        self.backlog = Backlog(eval_id, worker_id)  # under the lock of `logs`, once it is among its streams
        self._logs = logs
        self._replaying = False

    def replay(self) -> None:
        """What comes next was said to an earlier life of this worker, and is only counted."""
        self._replaying = True

    def go_on(self) -> None:
        """What comes from now on is new. Its numbers are above all that an earlier life can have given."""
        self.backlog.sequence += _LIFE
        self._replaying = False

    def said(self, stream: int, data: bytes) -> None:
        """The code has printed something."""
        if self._replaying:
            self.backlog.sequence += 2 * len(data)
        else:
            self._logs.accept(self, stream, data)

    def finish(self) -> None:
        """The task is settled: this was all."""
        self._logs.finish(self)

    def drop(self) -> None:
        """Somebody else goes on with the task."""
        self._logs.forget(self)


class LiveLogs:
    """Sends what the streams have to say, from one thread. What is not taken in time is left out, and counted."""

    def __init__(
        self,
        sink: Sink,
        worker_id: str,
        log: Log,
        dropped: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`dropped` hears of bytes that were left out."""
        self._sink = sink
        self._worker_id = worker_id
        self._log = log
        self._dropped = dropped
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._streams: dict[Stream, None] = {}
        self._down = False
        self._refused = False
        self._not_before = 0.0

    def stream(self, eval_id: str) -> Stream:
        """A place for the output of a task that begins."""
        return Stream(self, eval_id, self._worker_id)

    def accept(self, stream: Stream, number: int, data: bytes) -> None:
        """Output of a task, of its stream 1 or 2."""
        with self._lock:
            room = ALL_BYTES - sum(other.backlog.held for other in self._streams)
            self._streams.setdefault(stream)
            omitted = stream.backlog.add(number, data, room)
        if omitted:
            self._dropped(omitted)
        self._wake.set()

    def finish(self, stream: Stream) -> None:
        """No more output of this task."""
        with self._lock:
            stream.backlog.finished = True
            self._streams.setdefault(stream)
            ended = [other for other in self._streams if other.backlog.finished]
            for other in ended[: max(len(ended) - MOST_STREAMS, 0)]:
                del self._streams[other]
        self._wake.set()

    def forget(self, stream: Stream) -> None:
        """Say nothing more of this task."""
        with self._lock:
            self._streams.pop(stream, None)

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop` is set, and say then once more what there is to say."""
        while not stop.is_set():
            self._wake.wait()
            self._wake.clear()
            stop.wait(max(self._not_before - self._clock(), _GATHER_SECONDS))
            while not stop.is_set() and self.turn():
                pass
        while self.turn():
            pass

    def wake(self) -> None:
        """Look whether to stop."""
        self._wake.set()

    def turn(self) -> bool:
        """Send what every stream has to say now. Returns whether there may be more that can be sent."""
        with self._lock:
            waiting = [stream for stream in self._streams if stream.backlog.waiting]
        return bool(waiting) and all(self._send(stream) for stream in waiting)

    def _send(self, stream: Stream) -> bool:
        with self._lock:
            messages, size = stream.backlog.take()
        try:
            if messages:
                self._sink.send(stream.eval_id, messages)
        except RejectedError as error:
            self._give_up(stream, error)
        except (RetryError, KeyRefusedError) as error:
            self._failed(stream, size, error)
            return False
        else:
            self._sent(stream, ended=bool(messages) and messages[-1]["is_final"])
        return True

    def _sent(self, stream: Stream, *, ended: bool) -> None:
        if ended:
            self.forget(stream)
        if self._down:
            self._down = False
            self._log.info("live_logs_restored")

    def _failed(self, stream: Stream, size: int, error: Exception) -> None:
        if size:
            with self._lock:
                stream.backlog.lost(size)
        self._not_before = self._clock() + _PAUSE_SECONDS
        self._wake.set()
        if not self._down:
            self._down = True
            self._log.warning("live_logs_unreachable", error=str(error), detail="what is printed meanwhile is left out")

    def _give_up(self, stream: Stream, error: Exception) -> None:
        self.forget(stream)
        if not self._refused:
            self._refused = True
            self._log.warning("live_logs_refused", eval_id=stream.eval_id, error=str(error))


class Silence:
    """For those who want no live logs: takes everything and says nothing."""

    def stream(self, eval_id: str) -> "Silence":  # noqa: ARG002 - of no task in particular
        """A place for the output of a task that begins."""
        return self

    def said(self, stream: int, data: bytes) -> None:
        """Is not passed on."""

    def replay(self) -> None:
        """Makes no difference."""

    go_on = finish = drop = replay
