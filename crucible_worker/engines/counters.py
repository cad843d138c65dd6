"""What a sandbox has used, as its host counts it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of one sandbox, all that runs in it included; None where unknown.

    `oom_kills` counts processes killed for memory, `forks_refused` those that the limit on processes prevented, and
    `peak_processes` is the most there have been at a time, threads and those of gVisor's own kernel included.
    """

    cpu_ns: int | None = None
    peak_memory_bytes: int | None = None
    oom_kills: int | None = None
    forks_refused: int | None = None
    peak_processes: int | None = None

    def merged(self, other: "Counters") -> "Counters":
        """The larger of each: none of these ever falls, but what is read of a sandbox that has ended may lack some."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counters(*(max((value for value in pair if value is not None), default=None) for pair in pairs))


def of_stats(stats: Mapping[str, Any]) -> Counters:
    """Counters from the Docker Engine's ContainerStats. Only cgroup v1 has a peak of memory there."""
    cpu = ((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage")
    peak = (stats.get("memory_stats") or {}).get("max_usage")
    return Counters(cpu_ns=cpu or None, peak_memory_bytes=peak or None)


class Meter:
    """Follows one sandbox's counters from the start of its code."""

    def __init__(self, *sources: Callable[[], Counters]) -> None:
        """`sources`, best first; the first one that knows something then is read."""
        self._sources = sources
        self._before = Counters()
        self.counters = Counters()
        self.misled = False

    def start(self) -> None:
        """The code starts now. `misled` tells afterwards whether the best source knows nothing of its sandbox."""
        sources, self._sources = self._sources, ()
        for source in sources:
            self._before = source()
            if self._before.cpu_ns:
                self._sources = (source,)
                break
        self.misled = self._sources != sources[:1]

    def take(self) -> None:
        """Take a reading; of use while the sandbox is still there, and in a cgroup of our own also afterwards."""
        for source in self._sources:
            self.counters = self.counters.merged(source())

    @property
    def cpu_ms(self) -> float | None:
        """CPU time since the start of the code, in milliseconds; None where no later reading has counted any."""
        before, now = self._before.cpu_ns, self.counters.cpu_ns
        return None if before is None or now is None else round((now - before) / 1e6, 1) or None
