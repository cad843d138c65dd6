"""What running tasks have printed so far, as their workers tell it. In memory and bounded; the RESULT has it all."""

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TASKS = 256
TASK_BYTES = 256 << 10
_MESSAGE_BYTES = 200  # what a message costs beside its content


@dataclass(slots=True)
class _Log:
    messages: deque[Mapping[str, Any]] = field(default_factory=deque)
    size: int = 0
    final: bool = False


class Logbook:
    """The last messages of the last tasks. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: OrderedDict[str, _Log] = OrderedDict()

    def restart(self, eval_id: str) -> None:
        """The task begins, perhaps once more."""
        with self._lock:
            self._logs.pop(eval_id, None)

    def add(self, eval_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Messages in order. One that is not behind all before it is a repetition, and left out."""
        with self._lock:
            log = self._logs.setdefault(eval_id, _Log())
            self._logs.move_to_end(eval_id)
            for message in messages:
                if log.final or (log.messages and message["sequence"] <= log.messages[-1]["sequence"]):
                    continue
                log.messages.append(message)
                log.size += _cost(message)
                log.final = message["is_final"]
            while log.size > TASK_BYTES and len(log.messages) > 1:
                log.size -= _cost(log.messages.popleft())
            while len(self._logs) > TASKS:
                self._logs.popitem(last=False)

    def read(self, eval_id: str, after: int) -> tuple[list[Mapping[str, Any]], bool]:
        """What is kept with a larger sequence number than `after`, and whether that is the end."""
        with self._lock:
            log = self._logs.get(eval_id)
            if log is None:
                return [], False
            return [message for message in log.messages if message["sequence"] > after], log.final


def _cost(message: Mapping[str, Any]) -> int:
    return len(message["content"]) + _MESSAGE_BYTES
