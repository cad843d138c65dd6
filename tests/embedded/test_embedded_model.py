"""The store against a model small enough to be obviously right."""

from dataclasses import dataclass, field

import pytest
from embedded_support import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from crucible_worker.embedded.entry import ConflictError, State, UnknownTaskError
from crucible_worker.embedded.store import GRACE_SECONDS, MAX_ATTEMPTS, Store
from crucible_worker.model import Task

LEASE = 60.0


@dataclass
class Known:
    task: Task
    priority: int
    arrival: int
    state: State = State.QUEUED
    lease: str | None = None
    expires: float = 0.0
    attempts: int = 0
    cancel: bool = False
    settled_by: str | None = None
    outcome: str | None = None


@dataclass
class Model:
    """What the store should know."""

    tasks: dict[str, Known] = field(default_factory=dict)
    arrivals: int = 0

    def overdue(self, now: float) -> None:
        for known in self.tasks.values():
            if known.state is State.LEASED and known.expires <= now:
                known.state = State.QUEUED
                if known.cancel or known.attempts >= MAX_ATTEMPTS:
                    known.state, known.outcome = State.FAILED, None

    def first(self) -> Known | None:
        queued = [known for known in self.tasks.values() if known.state is State.QUEUED]
        return min(queued, key=lambda known: (-known.priority, known.arrival), default=None)


class StoreMachine(RuleBasedStateMachine):
    claims = Bundle("claims")
    ids = st.sampled_from(["a", "b", "ü/€", "\0"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = Store(lease_seconds=LEASE, clock=self.clock)
        self.model = Model()

    def teardown(self) -> None:
        self.store.close()

    @rule(seconds=st.sampled_from([1.0, LEASE, 30 + GRACE_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.overdue(self.clock.now)

    @rule(eval_id=ids, code=st.sampled_from(["1", "2"]), priority=st.integers(-1, 1))
    def submit(self, eval_id: str, code: str, priority: int) -> None:
        task = Task(eval_id, code)
        known = self.model.tasks.get(eval_id)
        if known and (known.task, known.priority) != (task, priority):
            with pytest.raises(ConflictError):
                self.store.submit(task, priority)
            return
        assert self.store.submit(task, priority)[1] is (known is None)
        if known is None:
            self.model.arrivals += 1
            self.model.tasks[eval_id] = Known(task, priority, self.model.arrivals)

    @rule(target=claims)
    def claim(self):
        known, task = self.model.first(), self.store.claim()
        if known is None:
            assert task is None
            return multiple()
        assert task is not None
        assert (task.eval_id, task.code) == (known.task.eval_id, known.task.code)
        known.state, known.lease = State.LEASED, task.lease.id
        known.attempts += 1
        known.expires = self.clock.now + 30 + GRACE_SECONDS
        return task.eval_id, task.lease.id

    def held(self, eval_id: str, lease: str) -> type[Exception] | Known:
        known = self.model.tasks.get(eval_id)
        if known is None:
            return UnknownTaskError
        return ConflictError if known.state.settled or known.lease != lease else known

    @rule(claim=claims)
    def renew(self, claim) -> None:
        known = self.held(*claim)
        if isinstance(known, type):
            with pytest.raises(known):
                self.store.renew(*claim)
            return
        assert self.store.renew(*claim) is known.cancel
        known.state, known.expires = State.LEASED, self.clock.now + LEASE

    @rule(claim=claims)
    def release(self, claim) -> None:
        known = self.held(*claim)
        if isinstance(known, type):
            with pytest.raises(known):
                self.store.release(*claim)
            return
        self.store.release(*claim)
        if known.cancel:
            known.state = State.FAILED
        else:
            known.state, known.lease = State.QUEUED, None

    @rule(claim=claims, kind=st.sampled_from([State.COMPLETED, State.FAILED]), outcome=st.sampled_from("12"))
    def settle(self, claim, kind: State, outcome: str) -> None:
        self._settle(claim[0], kind, outcome, claim[1])

    @rule(eval_id=ids, kind=st.sampled_from([State.COMPLETED, State.FAILED]), outcome=st.sampled_from("12"))
    def settle_without_lease(self, eval_id: str, kind: State, outcome: str) -> None:
        self._settle(eval_id, kind, outcome, None)

    def _settle(self, eval_id: str, kind: State, outcome: str, lease: str | None) -> None:
        known = self.model.tasks.get(eval_id)
        if known is None:
            expected: type[Exception] | None = UnknownTaskError
        elif known.state.settled:
            same = known.state is kind and known.settled_by == lease and (lease or known.outcome == outcome)
            expected = None if same else ConflictError
        else:
            expected = ConflictError if lease and lease != known.lease else None
        if expected:
            with pytest.raises(expected):
                self.store.settle(eval_id, kind, outcome, lease)
            return
        self.store.settle(eval_id, kind, outcome, lease)
        if not known.state.settled:
            known.state, known.outcome, known.settled_by = kind, outcome, lease

    @rule(eval_id=ids)
    def cancel(self, eval_id: str) -> None:
        known = self.model.tasks.get(eval_id)
        if known is None or known.state.settled:
            with pytest.raises((UnknownTaskError, ConflictError)):
                self.store.cancel(eval_id)
            return
        assert self.store.cancel(eval_id) is known.state
        if known.state is State.QUEUED:
            del self.model.tasks[eval_id]
        else:
            known.cancel = True

    @invariant()
    def agrees(self) -> None:
        for eval_id, known in self.model.tasks.items():
            entry = self.store.get(eval_id)
            assert (entry.state, entry.attempts) == (known.state, known.attempts)
        assert sum(self.store.counts().values()) == len(self.model.tasks)


StoreMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase
