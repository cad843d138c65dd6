"""Removes the sandboxes that nobody looks after, sees that they are gone, and says which will not go."""

import datetime as dt
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from crucible_worker.engines import processes
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.leftovers import GRACE_SECONDS, Known, leftovers, overdue
from crucible_worker.errors import TaskError

WORKER_LABEL = "crucible.worker"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What became of leftovers: the ids of those removed, and of those that are still there."""

    removed: list[str]
    stubborn: list[str]


class Reconciler:
    """Looks after the sandboxes of one worker id."""

    def __init__(
        self,
        daemon: Daemon,
        worker_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._daemon = daemon
        self._worker_id = worker_id
        self._clock = clock
        self._seen_overdue: dict[str, float] = {}

    def sweep(self, known: Known) -> Sweep:
        """Remove what is certainly nobody's, and what stays overdue for as long as the grace lasts by our own clock.

        A clock that was set makes sandboxes of living workers look overdue, but they do not stay so for long.
        Raises DaemonGoneError and TaskError as the daemon's calls.
        """
        found = self._daemon.containers({WORKER_LABEL: self._worker_id})
        certain = leftovers(found, known)
        own = {str(c["Id"]) for c in found if c["Labels"].get("crucible.boot") == known.boot}
        late = set(overdue(found, dt.datetime.now(dt.UTC))) - own - set(known.spared)
        now = self._clock()
        self._seen_overdue = {c: self._seen_overdue.get(c, now) for c in late}
        patient = [c for c, since in self._seen_overdue.items() if now - since >= GRACE_SECONDS]
        return remove(self._daemon, list(dict.fromkeys(certain + patient)))


def remove(daemon: Daemon, containers: Collection[str]) -> Sweep:
    """Remove containers, by the daemon and then by their processes. Raises DaemonGoneError."""
    removed: list[str] = []
    stubborn: list[str] = []
    for container in containers:
        try:
            daemon.remove(container)
            gone = daemon.inspect(container) is None
        except DaemonGoneError:
            raise
        except TaskError:
            gone = False
        if processes.kill(container) and not gone:
            gone = _again(daemon, container)
        (removed if gone else stubborn).append(container)
    return Sweep(removed, stubborn)


def _again(daemon: Daemon, container: str) -> bool:
    """Remove a container whose processes were in the way."""
    try:
        daemon.remove(container)
        return daemon.inspect(container) is None
    except TaskError:
        return False
