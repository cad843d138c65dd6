"""Says what waits in the journal, for as long as it takes, each entry with its own back-off."""

import enum
import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from crucible_worker.backoff import delivery_pause
from crucible_worker.errors import AlreadySettledError, JournalError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.journal import Entry

_IDLE_SECONDS = 5.0


class Outcome(enum.StrEnum):
    """What became of one attempt to deliver."""

    ACCEPTED = "accepted"
    ALREADY_SETTLED = "already_settled"
    REJECTED = "rejected"
    RETRY = "retry"
    KEY_REFUSED = "key_refused"


class Lane(Protocol):
    """The part of the journal that a delivery reads."""

    def pending(self, lane: str) -> list[int]:
        """Ids of what is to be said, oldest first."""

    def entry(self, entry_id: int) -> Entry | None:
        """One entry."""

    def done(self, entry_id: int) -> None:
        """It has been said."""

    def bury(self, entry_id: int, answer: str) -> None:
        """It was refused for good."""


class Delivery:
    """Empties one lane. One stubborn entry never blocks the others."""

    def __init__(
        self,
        journal: Lane,
        lane: str,
        send: Callable[[Entry], None],
        on_outcome: Callable[[Entry, Outcome, str], None],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`send` says one entry or raises one of our errors; `on_outcome` is told each attempt and the peer's words."""
        self._journal = journal
        self._lane = lane
        self._send = send
        self._on_outcome = on_outcome
        self._clock = clock
        self._jitter = jitter
        self._failures: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._wake = threading.Event()
        self._hurry = threading.Event()

    def wake(self) -> None:
        """There is something new to say."""
        self._wake.set()

    def hurry(self) -> None:
        """What was postponed is due now: there is reason to hope."""
        self._hurry.set()
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set. A journal that cannot be read or written is tried again like a peer."""
        while not stop.is_set():
            try:
                pause = self.turn()
            except JournalError:
                pause = _IDLE_SECONDS
            self._wake.wait(pause)
            self._wake.clear()

    def turn(self) -> float:
        """Try all that is due once. Returns the seconds until the next is."""
        if self._hurry.is_set():
            self._hurry.clear()
            self._due.clear()
        pending = self._journal.pending(self._lane)
        for forgotten in self._due.keys() - set(pending):
            self._forget(forgotten)
        for entry_id in pending:
            if self._due.get(entry_id, 0.0) <= self._clock():
                self._attempt(entry_id)
        return max(min(self._due.values(), default=self._clock() + _IDLE_SECONDS) - self._clock(), 0.0)

    def empty(self) -> bool:
        """Whether nothing is left to say."""
        return not self._journal.pending(self._lane)

    def _attempt(self, entry_id: int) -> None:
        entry = self._journal.entry(entry_id)
        if entry is None:
            return
        try:
            self._send(entry)
        except AlreadySettledError as error:
            self._close(entry, Outcome.ALREADY_SETTLED, str(error))
        except RejectedError as error:
            self._journal.bury(entry_id, str(error))
            self._forget(entry_id)
            self._on_outcome(entry, Outcome.REJECTED, str(error))
        except KeyRefusedError as error:
            self._postpone(entry, Outcome.KEY_REFUSED, str(error), None)
        except RetryError as error:
            self._postpone(entry, Outcome.RETRY, str(error), error.retry_after)
        except Exception as error:  # noqa: BLE001 - a defect of ours must neither lose an entry nor block the others
            self._postpone(entry, Outcome.RETRY, f"was not asked: {type(error).__name__}: {error}", None)
        else:
            self._close(entry, Outcome.ACCEPTED, "")

    def _close(self, entry: Entry, outcome: Outcome, words: str) -> None:
        self._journal.done(entry.id)
        self._forget(entry.id)
        self._on_outcome(entry, outcome, words)

    def _postpone(self, entry: Entry, outcome: Outcome, words: str, asked: float | None) -> None:
        failures = self._failures[entry.id] = self._failures.get(entry.id, 0) + 1
        pause = delivery_pause(failures, self._jitter()) if asked is None else asked
        self._due[entry.id] = self._clock() + pause
        self._on_outcome(entry, outcome, words)

    def _forget(self, entry_id: int) -> None:
        self._due.pop(entry_id, None)
        self._failures.pop(entry_id, None)
