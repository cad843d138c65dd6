"""What must not be lost: open claims, and what has still to be said to the queue and the event bus. SQLite on disk."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_worker.errors import ExitCode, ExitError, JournalError

MEMORY = "memory"
SCHEMA_VERSION = 1
RESULTS, EVENTS = "results", "events"
_BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE claims (id INTEGER PRIMARY KEY, eval_id TEXT NOT NULL, lease TEXT, engine TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE outbox (id INTEGER PRIMARY KEY, lane TEXT NOT NULL, kind TEXT NOT NULL, eval_id TEXT NOT NULL,
                     body TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX outbox_lane ON outbox (lane, id);
CREATE TABLE dead (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, eval_id TEXT NOT NULL, body TEXT NOT NULL,
                   answer TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE boots (id TEXT PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A task taken from the queue and not settled yet."""

    id: int
    eval_id: str
    lease: str | None
    engine: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to say: `kind` is what, `body` a JSON document."""

    id: int
    kind: str
    eval_id: str
    body: Any


class Journal:
    """Claims, an outbox with two lanes, dead letters, and our own earlier lives. May be shared by threads.

    Ids survive as they are: any text.

    Every method is one transaction, on disk when it returns (SQLite, WAL, synchronous FULL), or raises JournalError.
    """

    def __init__(self, directory: str) -> None:
        """Open or make the journal in `directory`, locked against other workers; `memory` keeps all in memory.

        Raises ExitError (64) where the directory cannot be written, another worker has it, or a newer one wrote it.
        """
        self._lock = threading.Lock()
        self.durable = directory != MEMORY
        try:
            self._db = self._open(directory)
        except (OSError, sqlite3.Error) as error:
            raise ExitError(ExitCode.USAGE, _trouble(directory, error)) from error

    def _open(self, directory: str) -> sqlite3.Connection:
        path = ":memory:"
        if self.durable:
            Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            path = str(Path(directory) / "journal.db")
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
        try:
            # Exclusive: a second worker on this directory is refused instead of settling our tasks.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
                db.execute(f"PRAGMA {pragma}")
            db.execute("BEGIN EXCLUSIVE")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise ExitError(ExitCode.USAGE, f"{path} was written by a newer crucible-worker; use that one.")
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction, or left it open at COMMIT; the next one needs it ended.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def claim(self, eval_id: str, lease: str | None, engine: str, at: float) -> int:
        """Note a claim before its sandbox is made. Returns its id. `at` is Unix time."""
        with self._transaction() as db:
            row = (_key(eval_id), lease, engine, at)
            found = db.execute("INSERT INTO claims (eval_id, lease, engine, at) VALUES (?, ?, ?, ?)", row)
            return int(found.lastrowid or 0)

    def settle(self, claim: int, kind: str, eval_id: str, body: Mapping[str, Any], at: float) -> None:
        """Replace a claim by what is to be said to the queue about it, before it is said."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE id = ?", (claim,))
            self._put(db, RESULTS, kind, eval_id, body, at)

    def tell(self, kind: str, eval_id: str, body: Mapping[str, Any], at: float, limit: int) -> None:
        """Put an event into the outbox, which keeps at most `limit` of them: the oldest ones go."""
        with self._transaction() as db:
            self._put(db, EVENTS, kind, eval_id, body, at)
            db.execute(
                "DELETE FROM outbox WHERE lane = ? AND id <= (SELECT id FROM outbox WHERE lane = ? "
                "ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (EVENTS, EVENTS, limit),
            )

    @staticmethod
    def _put(db: sqlite3.Connection, lane: str, kind: str, eval_id: str, body: Mapping[str, Any], at: float) -> None:
        row = (lane, kind, _key(eval_id), json.dumps(body), at)
        db.execute("INSERT INTO outbox (lane, kind, eval_id, body, at) VALUES (?, ?, ?, ?, ?)", row)

    def begin(self, boot: str) -> list[str]:
        """Note that a life of this worker begins. Returns the earlier ones whose sandboxes may still be there."""
        with self._transaction() as db:
            earlier = [row[0] for row in db.execute("SELECT id FROM boots")]
            db.execute("INSERT INTO boots (id) VALUES (?)", (boot,))
        return earlier

    def swept(self, boots: Iterable[str]) -> None:
        """Forget lives of which no sandbox is left."""
        with self._transaction() as db:
            db.executemany("DELETE FROM boots WHERE id = ?", [(boot,) for boot in boots])

    def claims(self) -> list[Claim]:
        """All open claims, oldest first."""
        with self._transaction() as db:
            rows = db.execute("SELECT id, eval_id, lease, engine FROM claims ORDER BY id").fetchall()
        return [Claim(row[0], json.loads(row[1]), row[2], row[3]) for row in rows]

    def pending(self, lane: str) -> list[int]:
        """The ids of all that is to be said in a lane, oldest first."""
        with self._transaction() as db:
            return [row[0] for row in db.execute("SELECT id FROM outbox WHERE lane = ? ORDER BY id", (lane,))]

    def entry(self, entry_id: int) -> Entry | None:
        """One thing to say, or None if it has gone."""
        with self._transaction() as db:
            row = db.execute("SELECT id, kind, eval_id, body FROM outbox WHERE id = ?", (entry_id,)).fetchone()
        return Entry(row[0], row[1], json.loads(row[2]), json.loads(row[3])) if row else None

    def done(self, entry_id: int) -> None:
        """Forget what has been said."""
        with self._transaction() as db:
            db.execute("DELETE FROM outbox WHERE id = ?", (entry_id,))

    def bury(self, entry_id: int, answer: str, at: float) -> None:
        """Move what was refused for good to the dead letters, with the answer."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO dead (kind, eval_id, body, answer, at) "
                "SELECT kind, eval_id, body, ?, ? FROM outbox WHERE id = ?",
                (answer, at, entry_id),
            )
            db.execute("DELETE FROM outbox WHERE id = ?", (entry_id,))

    def counts(self) -> dict[str, int]:
        """How many open claims, pending results, pending events and dead letters there are."""
        queries = {
            "claimed": "SELECT count(*) FROM claims",
            "pending": f"SELECT count(*) FROM outbox WHERE lane = '{RESULTS}'",  # noqa: S608 - our own constant
            "events": f"SELECT count(*) FROM outbox WHERE lane = '{EVENTS}'",  # noqa: S608 - our own constant
            "dead": "SELECT count(*) FROM dead",
        }
        with self._transaction() as db:
            return {state: int(db.execute(query).fetchone()[0]) for state, query in queries.items()}

    def close(self) -> None:
        """Close the file and give up its lock."""
        with self._lock:
            self._db.close()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(str(error)) from error


def _key(eval_id: str) -> str:
    """Any text as SQLite can keep it: JSON in ASCII, since lone surrogates are no UTF-8."""
    return json.dumps(eval_id)


def _trouble(directory: str, error: Exception) -> str:
    if "locked" in str(error):
        return f"another worker uses {directory}; give this one its own CRUCIBLE_STATE_DIR."
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return f"{directory}/journal.db is damaged ({error}); move it away, and keep it: results may be in it."
    return (
        f"the state directory {directory} cannot be used ({error}); "
        "set CRUCIBLE_STATE_DIR to a writable one, or to memory, where a crash loses results."
    )
