"""Ends sandboxes whose verdict is known, off the way of the next task."""

import queue
import threading
from collections.abc import Callable

# So many may wait. When a daemon removes them more slowly than they come, those who bring them wait too.
_BACKLOG = 64
_THREADS = 2


class Undertaker:
    """Does what it is given, in the order of its coming, on threads of its own."""

    def __init__(self, farewell: Callable[[], None] = lambda: None) -> None:
        """`farewell` is called by each thread at its end."""
        self._farewell = farewell
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_BACKLOG)
        self._threads = [
            threading.Thread(target=self._work, name=f"undertaker-{n}", daemon=True) for n in range(1, _THREADS + 1)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, job: Callable[[], None]) -> None:
        """Have something done; it must not raise."""
        self._jobs.put(job)

    def finish(self, seconds: float) -> bool:
        """Wait until all is done that was given. Returns whether that was within `seconds`."""
        with self._jobs.all_tasks_done:
            return self._jobs.all_tasks_done.wait_for(lambda: not self._jobs.unfinished_tasks, seconds)

    def close(self, seconds: float) -> bool:
        """The same, and then the threads end; nothing may be given any more."""
        done = self.finish(seconds)
        for _ in self._threads if done else ():
            self._jobs.put(None)
        for thread in self._threads if done else ():
            thread.join(seconds)
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                self._jobs.task_done()
                del job
        self._farewell()
        self._jobs.task_done()
