"""Sandboxes made before their task comes: each is used once, for a task that asks for exactly its configuration."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from crucible_worker.engines.daemon import DaemonGoneError
from crucible_worker.engines.prepared import Prepared
from crucible_worker.errors import TaskError
from crucible_worker.model import Reason

MAX_AGE_SECONDS = 900.0
BOOT_SECONDS = 30.0
_LOOK_SECONDS = 5.0  # between looks at the sandboxes that wait, and at their image

Key = tuple[str, str]  # engine and language


class Pool:
    """Keeps some sandboxes of one configuration up. May be shared by threads."""

    def __init__(
        self,
        make: Callable[[], Prepared],
        discard: Callable[[Prepared], None],
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make` may raise TaskError or DaemonGoneError; `discard` does not raise."""
        self._make = make
        self._discard = discard
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[Prepared] = deque()
        self._closed = False

    @property
    def ready(self) -> int:
        """How many wait for a task."""
        with self._lock:
            return len(self._waiting)

    def take(self, shape: Mapping[str, Any]) -> Prepared | None:
        """One that is up and of exactly this shape (`policy.shape`), the oldest first; None where there is none."""
        while (found := self._pop(lambda prepared: prepared.shape == shape)) is not None:
            if found.is_up():
                return found
            self._discard(found)
        return None

    def clear_out(self, image_id: str | None) -> None:
        """Take away what is dead, too old, or of another image than `image_id`."""
        while (unfit := self._pop(lambda prepared: not self._fit(prepared, image_id))) is not None:
            self._discard(unfit)

    def fill(self) -> bool:
        """Make one, if one is missing. Returns whether more are. Raises TaskError or DaemonGoneError if it cannot."""
        if self._missing() <= 0:
            return False
        made = self._make()
        if not made.is_up(BOOT_SECONDS):
            self._discard(made)
            raise TaskError(Reason.ENGINE_UNAVAILABLE, "a warm sandbox did not come up")
        with self._lock:
            kept = not self._closed
            if kept:
                self._waiting.append(made)
        if not kept:
            self._discard(made)
        return self._missing() > 0

    def close(self) -> None:
        """Take all away, and keep none from now on."""
        with self._lock:
            self._closed = True
        while (waiting := self._pop(lambda _: True)) is not None:
            self._discard(waiting)

    def _fit(self, prepared: Prepared, image_id: str | None) -> bool:
        young = self._clock() - prepared.born < MAX_AGE_SECONDS
        return young and prepared.is_up() and image_id in {None, prepared.image_id}

    def _missing(self) -> int:
        with self._lock:
            return 0 if self._closed else self._size - len(self._waiting)

    def _pop(self, wanted: Callable[[Prepared], bool]) -> Prepared | None:
        with self._lock:
            found = next((prepared for prepared in self._waiting if wanted(prepared)), None)
            if found is not None:
                self._waiting.remove(found)
            return found


class Warmth:
    """All pools of a worker, filled by one thread, one sandbox at a time: making them costs CPU that tasks want too."""

    def __init__(
        self,
        keys: Iterable[Key],
        size: int,
        *,
        make: Callable[[str, str], Prepared],
        discard: Callable[[Prepared], None],
        image_id: Callable[[str], str | None],
        may: Callable[[str], bool],
        on_trouble: Callable[[str], None],
    ) -> None:
        """`make` takes a key, `image_id` its language; `may` says whether one may be made now for an engine.

        `on_trouble` is told in a sentence why a pool cannot be filled, once for each reason.
        """
        self._pools = {key: Pool(partial(make, *key), discard, size) for key in keys} if size else {}
        self._image_id = image_id
        self._may = may
        self._on_trouble = on_trouble
        self._troubles: dict[Key, str] = {}
        self._wake = threading.Event()

    def ready(self) -> Mapping[str, int]:
        """How many sandboxes wait, by engine and language, such as docker/python."""
        return {"/".join(key): pool.ready for key, pool in self._pools.items()}

    def take(self, engine: str, language: str, shape: Mapping[str, Any]) -> Prepared | None:
        """A sandbox for a task, or None where it must make its own."""
        pool = self._pools.get((engine, language))
        return pool.take(shape) if pool else None

    def wake(self) -> None:
        """A sandbox has been taken, or a task has ended: look again now."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Keep the pools full until `stop` is set. It ends at most a look later, but never in a look."""
        while self._pools and not stop.is_set():
            self._wake.clear()
            if not self.turn(stop):
                self._wake.wait(_LOOK_SECONDS)

    def turn(self, stop: threading.Event) -> bool:
        """Clear out each pool, and make one sandbox for it. Returns whether it is of use to go on at once."""
        more = False
        for key, pool in self._pools.items():
            if stop.is_set():
                return False
            try:
                pool.clear_out(self._image_id(key[1]))
                if self._may(key[0]):
                    more |= pool.fill()
                self._troubles.pop(key, None)
            except (TaskError, DaemonGoneError) as error:
                if self._troubles.get(key) != str(error):
                    self._on_trouble(f"{'/'.join(key)}: {error}")
                self._troubles[key] = str(error)
        return more

    def close(self) -> None:
        """Take all sandboxes away."""
        for pool in self._pools.values():
            pool.close()
