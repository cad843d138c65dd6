"""What the embedded queue calls its things: states, entries, filters, refusals."""

import enum
from collections.abc import Set as AbstractSet
from dataclasses import dataclass


class State(enum.StrEnum):
    """Where a task stands."""

    QUEUED = "queued"
    LEASED = "leased"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def settled(self) -> bool:
        """Whether nothing can change any more."""
        return self in {State.COMPLETED, State.FAILED}


class UnknownTaskError(Exception):
    """No task of that id is known, or not any more."""


class ConflictError(Exception):
    """The task is not in a state that allows this; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a worker can run; None means that it does not say. A task's labels must all be among `labels`."""

    engines: AbstractSet[str] | None = None
    languages: AbstractSet[str] | None = None
    labels: AbstractSet[str] | None = None

    def admits(self, engine: str, language: str, labels: AbstractSet[str]) -> bool:
        """Whether a task of this kind may be handed out."""
        return (
            (self.engines is None or engine in self.engines)
            and (self.languages is None or language in self.languages)
            and (self.labels is None or labels <= self.labels)
        )


ANYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one task, without its code. Times are seconds since the epoch, None where not reached.

    `attempts` counts the leases given, `cancel` tells that the next heartbeat will say so, `outcome` is JSON text.
    """

    eval_id: str
    state: State
    language: str
    engine: str
    timeout: float
    priority: int
    attempts: int
    cancel: bool
    submitted: float
    started: float | None
    settled: float | None
    expires: float | None
    outcome: str | None
