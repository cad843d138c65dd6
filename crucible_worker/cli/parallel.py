"""Calls in threads, so that the main thread can show progress and hear Ctrl-C."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_TICK = 0.2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[_T]):
    number: int
    value: list[_T]  # empty where there is an error
    error: BaseException | None = None


def run_all(
    calls: Sequence[Callable[[], _T]],
    jobs: int,
    *,
    done: Callable[[int, _T], None],
    tick: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
    grace: float = 0.0,
) -> None:
    """Make every call, `jobs` at a time. `done` gets each one's number and value, in this thread, as they end.

    `tick` is called every so often in between. What a call or `done` raises, and Ctrl-C, ends the whole: no further
    call is begun, `stop` asks those that run to end, and they get `grace` seconds each for it.
    """
    todo = deque(enumerate(calls))
    told: queue.SimpleQueue[_Outcome[_T]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                number, call = todo.popleft()
            except IndexError:
                return
            try:
                told.put(_Outcome(number, [call()]))
            except BaseException as error:  # noqa: BLE001 - raised again, in the thread that asked
                todo.clear()
                told.put(_Outcome(number, [], error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(calls)))]
    for thread in threads:
        thread.start()
    try:
        for _ in calls:
            outcome = _next(told, tick)
            if outcome.error is not None:
                raise outcome.error
            done(outcome.number, *outcome.value)
    except BaseException:
        todo.clear()
        stop()
        for thread in threads:
            thread.join(grace)
        raise


def _next(told: "queue.SimpleQueue[_T]", tick: Callable[[], None]) -> _T:
    while True:
        tick()
        try:
            return told.get(timeout=_TICK)
        except queue.Empty:
            continue
