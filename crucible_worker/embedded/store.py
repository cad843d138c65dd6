"""The queue's memory: tasks and their outcomes in SQLite. Every change of state is one transaction.

    queued -> leased -> completed | failed

A claim is a lease: an id that fences off older claims, and an expiry. A worker that has never renewed may be one
that ignores leases, so its first expiry covers the task's own timeout and a margin; from the first heartbeat on, the
worker has shown that it renews, and a missed renewal gives the task to the next one within `lease_seconds`.
A lease that expired still counts as current until somebody else claims the task: its result is as good as any.
"""

import base64
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from crucible_worker.embedded import database
from crucible_worker.embedded.entry import ANYTHING, ConflictError, Entry, Filter, State, UnknownTaskError
from crucible_worker.model import Lease, Task

DEFAULT_LEASE_SECONDS = 60.0
DEFAULT_KEEP = 10_000
DEFAULT_KEEP_SECONDS = 7 * 86400.0
# A task whose workers vanish again and again probably is what makes them vanish.
MAX_ATTEMPTS = 5
# What a worker that ignores leases may need on top of the timeout: starting a sandbox, delivering after an outage.
GRACE_SECONDS = 120.0
# Longer timeouts are some mistake; a worker clamps them long before.
_LONGEST_TIMEOUT = 86400.0


class Store:
    """A FIFO queue with priorities that survives kill -9. Any thread may call it.

    `lease_seconds` is what a claim lasts between renewals; settled tasks are forgotten after `keep_seconds`,
    the oldest first where there are more than `keep`. `clock` is seconds since the epoch.
    """

    def __init__(
        self,
        path: str = ":memory:",
        *,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        keep: int = DEFAULT_KEEP,
        keep_seconds: float = DEFAULT_KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or make the database at `path`. Raises ExitError (64) where it cannot be used."""
        self.lease_seconds = lease_seconds
        self._keep = keep
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._db = database.connect(path)
        self._db.row_factory = sqlite3.Row

    def now(self) -> float:
        """Seconds since the epoch, by the clock that dates everything in here."""
        return self._clock()

    def close(self) -> None:
        """Close the database; nothing may be called afterwards."""
        with self._lock:
            self._db.close()

    def submit(self, task: Task, priority: int = 0, labels: AbstractSet[str] = frozenset()) -> tuple[Entry, bool]:
        """Put a task at the end of its priority; higher ones go first. Returns its entry, and whether it is new.

        The identical task again is no second one, whatever became of the first: a lost answer may be retried.
        Raises ConflictError where another task has that id.
        """
        values = {
            "eval_id": _encode(task.eval_id),
            "priority": priority,
            "language": _encode(task.language),
            "engine": _encode(task.engine),
            "labels": _encode(sorted(labels)),
            "timeout": task.timeout,
            "body": _encode(_body(task)),
        }
        with self._transaction() as (db, now):
            row = db.execute(
                "SELECT eval_id, priority, language, engine, labels, timeout, body FROM task WHERE eval_id = :eval_id",
                values,
            ).fetchone()
            if row is not None and dict(row) != values:
                raise ConflictError("another task has this eval_id")
            if row is None:
                db.execute(
                    "INSERT INTO task (eval_id, state, priority, language, engine, labels, timeout, body, submitted)"
                    " VALUES (:eval_id, 'queued', :priority, :language, :engine, :labels, :timeout, :body, :now)",
                    {**values, "now": now},
                )
            return _entry(_find(db, task.eval_id)), row is None

    def claim(self, wanted: Filter = ANYTHING) -> Task | None:
        """Lease the next task that `wanted` admits, or None where there is none."""
        with self._transaction() as (db, now):
            seq = _first(db, wanted)
            if seq is None:
                return None
            row = db.execute("SELECT * FROM task WHERE seq = ?", (seq,)).fetchone()
            lease = Lease(uuid.uuid4().hex, self.lease_seconds)
            patience = max(self.lease_seconds, min(row["timeout"], _LONGEST_TIMEOUT) + GRACE_SECONDS)
            db.execute(
                "UPDATE task SET state = 'leased', attempts = attempts + 1, lease = ?, expires = ?, started = ?"
                " WHERE seq = ?",
                (lease.id, now + patience, now, seq),
            )
        code, stdin, *more = json.loads(row["body"])
        args, files = more or ([], {})
        return Task(
            eval_id=json.loads(row["eval_id"]),
            code=code,
            language=json.loads(row["language"]),
            engine=json.loads(row["engine"]),
            timeout=row["timeout"],
            lease=lease,
            stdin=stdin,
            args=tuple(args),
            files={name: base64.b64decode(content) for name, content in files.items()},
        )

    def renew(self, eval_id: str, lease: str) -> bool:
        """Renew a lease for `lease_seconds`. Returns whether the task is to be cancelled.

        Raises UnknownTaskError, or ConflictError where the lease is lost or the task settled.
        """
        with self._transaction() as (db, now):
            row = _held(db, eval_id, lease)
            db.execute(
                "UPDATE task SET state = 'leased', expires = ? WHERE seq = ?", (now + self.lease_seconds, row["seq"])
            )
            return bool(row["cancel"])

    def release(self, eval_id: str, lease: str) -> None:
        """Give a task back to its old place, or let go of it where it was to be cancelled.

        Raises UnknownTaskError, or ConflictError where the lease is lost or the task settled.
        """
        with self._transaction() as (db, now):
            row = _held(db, eval_id, lease)
            if row["cancel"]:
                _fail(db, row["seq"], now, "cancelled")
            else:
                db.execute(
                    "UPDATE task SET state = 'queued', lease = NULL, expires = NULL WHERE seq = ?", (row["seq"],)
                )

    def settle(self, eval_id: str, state: State, outcome: str, lease: str | None = None) -> None:
        """Record the outcome of a task, JSON text. `lease` is None from a worker that ignores leases.

        Once settled, the same again succeeds and changes nothing: of the same kind, with the same lease, or without
        a lease and with the same outcome. Raises UnknownTaskError, or ConflictError for any other second outcome
        and for a lease that is not the current one.
        """
        with self._transaction() as (db, now):
            row = _find(db, eval_id)
            if State(row["state"]).settled:
                same = row["state"] == state and row["settled_by"] == lease
                if same and (lease is not None or row["outcome"] == outcome):
                    return
                raise ConflictError(f"the task is already {row['state']}")
            if lease is not None and lease != row["lease"]:
                raise ConflictError("the lease is lost")
            db.execute(
                "UPDATE task SET state = ?, outcome = ?, settled_by = ?, settled = ?, expires = NULL WHERE seq = ?",
                (state, outcome, lease, now, row["seq"]),
            )

    def cancel(self, eval_id: str) -> State:
        """Forget a queued task, or have the next heartbeat of a leased one say so. Returns the state it was in.

        Raises UnknownTaskError, or ConflictError where the task is settled.
        """
        with self._transaction() as (db, _):
            row = _find(db, eval_id)
            state = State(row["state"])
            if state.settled:
                raise ConflictError(f"the task is already {state}")
            if state is State.QUEUED:
                db.execute("DELETE FROM task WHERE seq = ?", (row["seq"],))
            else:
                db.execute("UPDATE task SET cancel = 1 WHERE seq = ?", (row["seq"],))
            return state

    def clear(self) -> int:
        """Forget every queued task. Returns how many there were."""
        with self._transaction() as (db, _):
            return db.execute("DELETE FROM task WHERE state = 'queued'").rowcount

    def get(self, eval_id: str) -> Entry:
        """What is known of a task. Raises UnknownTaskError."""
        with self._transaction() as (db, _):
            return _entry(_find(db, eval_id))

    def counts(self) -> Mapping[State, int]:
        """How many tasks are in each state."""
        with self._transaction() as (db, _):
            found = dict(db.execute("SELECT state, count(*) FROM task GROUP BY state").fetchall())
        return {state: found.get(state.value, 0) for state in State}

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """A transaction, and the moment it happens at. What is overdue by then has already happened in it."""
        with self._lock:
            now = self._clock()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._overdue(now)
                yield self._db, now
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _overdue(self, now: float) -> None:
        """Take back expired leases, and forget old outcomes."""
        overdue = self._db.execute(
            "SELECT seq, cancel, attempts FROM task WHERE state = 'leased' AND expires <= ?", (now,)
        ).fetchall()
        for seq, cancel, attempts in overdue:
            if cancel:
                _fail(self._db, seq, now, "cancelled")
            elif attempts >= MAX_ATTEMPTS:
                _fail(self._db, seq, now, f"no worker reported back in {attempts} attempts")
            else:
                self._db.execute("UPDATE task SET state = 'queued', expires = NULL WHERE seq = ?", (seq,))
        self._db.execute("DELETE FROM task WHERE settled < ?", (now - self._keep_seconds,))
        self._db.execute(
            "DELETE FROM task WHERE seq IN (SELECT seq FROM task WHERE settled IS NOT NULL"
            " ORDER BY settled DESC, seq DESC LIMIT -1 OFFSET ?)",
            (self._keep,),
        )


def _body(task: Task) -> list[Any]:
    """What a task carries. The shorter form is also what versions without arguments and files can read."""
    if not task.args and not task.files:
        return [task.code, task.stdin]
    files = {name: base64.b64encode(content).decode() for name, content in task.files.items()}
    return [task.code, task.stdin, task.args, files]


def _encode(value: object) -> str:
    return json.dumps(value)


def _find(db: sqlite3.Connection, eval_id: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        "SELECT seq, eval_id, state, language, engine, timeout, priority, attempts, cancel, lease, expires, settled_by,"
        " submitted, started, settled, outcome FROM task WHERE eval_id = ?",
        (_encode(eval_id),),
    ).fetchone()
    if row is None:
        raise UnknownTaskError
    return row


def _held(db: sqlite3.Connection, eval_id: str, lease: str) -> sqlite3.Row:
    row = _find(db, eval_id)
    if State(row["state"]).settled:
        raise ConflictError(f"the task is already {row['state']}")
    if row["lease"] != lease:
        raise ConflictError("the lease is lost")
    return row


def _first(db: sqlite3.Connection, wanted: Filter) -> int | None:
    """The first queued task in line that `wanted` admits."""
    rows = db.execute(
        "SELECT seq, engine, language, labels FROM task WHERE state = 'queued' ORDER BY priority DESC, seq"
    )
    for seq, engine, language, labels in rows:
        if wanted is ANYTHING or wanted.admits(json.loads(engine), json.loads(language), set(json.loads(labels))):
            rows.close()
            return int(seq)
    return None


def _fail(db: sqlite3.Connection, seq: int, now: float, error: str) -> None:
    db.execute(
        "UPDATE task SET state = 'failed', outcome = ?, settled = ?, expires = NULL WHERE seq = ?",
        (_encode(error), now, seq),
    )


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        eval_id=json.loads(row["eval_id"]),
        state=State(row["state"]),
        language=json.loads(row["language"]),
        engine=json.loads(row["engine"]),
        timeout=row["timeout"],
        priority=row["priority"],
        attempts=row["attempts"],
        cancel=bool(row["cancel"]),
        submitted=row["submitted"],
        started=row["started"],
        settled=row["settled"],
        expires=row["expires"],
        outcome=row["outcome"],
    )
