"""What must not be lost: open claims, and what has still to be said to the queue and the event bus. SQLite on disk."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crucible_worker import statefile
from crucible_worker.errors import JournalError
from crucible_worker.statefile import MEMORY, StateFile

RESULTS, EVENTS, DEAD = "results", "events", "dead"
# What a task did to workers is forgotten after so long.
_CRASHES_KEPT_SECONDS = 7 * 86400.0
_JSON = json.JSONEncoder()
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Claim:
    """A task taken from the queue and not settled yet. `run` is what was noted when its code started, if it has."""

    id: int
    eval_id: str
    lease: str | None
    engine: str
    at: float = 0.0
    run: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to say: `kind` is what, `document` JSON. `answer` is why it was refused, of a dead letter.

    `lease` is the one under which a result was reached.
    """

    id: int
    kind: str
    eval_id: str
    document: bytes
    lease: str | None = None
    lane: str = RESULTS
    at: float = 0.0
    answer: str | None = None

    @property
    def body(self) -> Any:  # noqa: ANN401 - JSON values
        """What the document says."""
        return json.loads(self.document)


@dataclass(frozen=True, slots=True)
class Load:
    """How much the journal holds: bytes on disk, results and dead letters, and since when the oldest result waits."""

    size: int
    entries: int
    oldest: float | None


class Journal:
    """Claims, an outbox with two lanes, dead letters, and our own earlier lives. May be shared by threads.

    Ids survive as they are: any text.

    Every method is one transaction, on disk when it returns (SQLite, WAL, synchronous FULL), or raises JournalError.
    """

    def __init__(self, file: StateFile) -> None:
        """`file` belongs to the journal from here on."""
        self._lock = threading.Lock()
        self._file = file
        self._db = file.db
        self.set_aside = file.set_aside

    @classmethod
    def of(cls, directory: str) -> "Journal":
        """The journal of a worker; `memory` keeps all in memory. Raises ExitError as `statefile.own`."""
        return cls(statefile.in_memory() if directory == MEMORY else statefile.own(directory))

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

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of it. Reading goes on where the disk is full, and while somebody else writes."""
        with self._lock, _errors():
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if self._db.in_transaction:  # an error may have ended it
                    self._db.execute("ROLLBACK")

    # Claims

    def claim(self, eval_id: str, lease: str | None, engine: str, at: float) -> int:
        """Note a claim before its sandbox is made. Returns its id. `at` is Unix time."""
        with self._transaction() as db:
            row = (_key(eval_id), _key(lease), _key(engine), at)
            found = db.execute("INSERT INTO claims (eval_id, lease, engine, at) VALUES (?, ?, ?, ?)", row)
            return int(found.lastrowid or 0)

    def started(self, claim: int, run: Mapping[str, Any]) -> None:
        """Note that a claim's code has started, with what another process needs to follow it."""
        with self._transaction() as db:
            db.execute("UPDATE claims SET run = ? WHERE id = ?", (json.dumps(run), claim))

    def settle(self, claim: int, kind: str, eval_id: str, body: Mapping[str, Any], at: float) -> None:
        """Replace a claim by what is to be said to the queue about it, before it is said."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE id = ?", (claim,))
            self._put(db, RESULTS, kind, eval_id, body, at)

    def abandon(self, claim: int) -> None:
        """Forget a claim about which nothing is to be said: it is somebody else's by now."""
        with self._transaction() as db:
            db.execute("DELETE FROM claims WHERE id = ?", (claim,))

    def claims(self) -> list[Claim]:
        """All open claims, oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT id, eval_id, lease, engine, at, run FROM claims ORDER BY id").fetchall()
        return [
            Claim(r[0], json.loads(r[1]), json.loads(r[2]), json.loads(r[3]), r[4], json.loads(r[5]) if r[5] else None)
            for r in rows
        ]

    def crashed(self, eval_id: str, at: float) -> int:
        """Note that a worker has ended while it had this task. Returns how often that has happened."""
        with self._transaction() as db:
            db.execute("DELETE FROM crashes WHERE at < ?", (at - _CRASHES_KEPT_SECONDS,))
            db.execute(
                "INSERT INTO crashes (eval_id, count, at) VALUES (?, 1, ?) "
                "ON CONFLICT (eval_id) DO UPDATE SET count = count + 1, at = excluded.at",
                (_key(eval_id), at),
            )
            found = db.execute("SELECT count FROM crashes WHERE eval_id = ?", (_key(eval_id),)).fetchone()
            return int(found[0])

    # What is to be said

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
        # Piece by piece: a document has megabytes of output, twice, and every slot may put one in at once.
        row = (lane, kind, _key(eval_id), _key(body.get("lease")), at, sum(map(len, _JSON.iterencode(body))))
        found = db.execute(
            "INSERT INTO outbox (lane, kind, eval_id, lease, at, body) VALUES (?, ?, ?, ?, ?, zeroblob(?))", row
        )
        with db.blobopen("outbox", "body", int(found.lastrowid or 0)) as document:
            for piece in _JSON.iterencode(body):
                for start in range(0, len(piece), _PIECE):
                    document.write(piece[start : start + _PIECE].encode("ascii"))

    def pending(self, lane: str) -> list[int]:
        """The ids of all that is to be said in a lane, oldest first."""
        with self._reading() as db:
            return [row[0] for row in db.execute("SELECT id FROM outbox WHERE lane = ? ORDER BY id", (lane,))]

    def entry(self, entry_id: int) -> Entry | None:
        """One thing to say, or None if it has gone."""
        with self._reading() as db:
            wanted = "SELECT id, kind, eval_id, lease, lane, at, answer FROM outbox WHERE id = ?"
            row = db.execute(wanted, (entry_id,)).fetchone()
            if row is None:
                return None
            with db.blobopen("outbox", "body", entry_id, readonly=True) as document:
                return Entry(row[0], row[1], json.loads(row[2]), document.read(), json.loads(row[3]), *row[4:])

    def done(self, entry_id: int) -> None:
        """Forget what has been said."""
        with self._transaction() as db:
            db.execute("DELETE FROM outbox WHERE id = ?", (entry_id,))

    def bury(self, entry_id: int, answer: str) -> None:
        """Move what was refused for good to the dead letters, with the answer."""
        with self._transaction() as db:
            db.execute("UPDATE outbox SET lane = ?, answer = ? WHERE id = ?", (DEAD, answer, entry_id))

    def revive(self, entry_id: int) -> bool:
        """Have a dead letter said again. Returns whether there was one of that id."""
        with self._transaction() as db:
            found = db.execute(
                "UPDATE outbox SET lane = ?, answer = NULL WHERE id = ? AND lane = ?", (RESULTS, entry_id, DEAD)
            )
            return found.rowcount > 0

    # Lives

    def begin(self, boot: str) -> list[str]:
        """Note that a life of this worker begins. Returns the earlier ones whose sandboxes may still be there."""
        with self._transaction() as db:
            earlier = [row[0] for row in db.execute("SELECT id FROM boots")]
            db.execute("INSERT INTO boots (id) VALUES (?)", (boot,))
        return earlier

    def boots(self) -> list[str]:
        """The lives whose sandboxes may still be there."""
        with self._reading() as db:
            return [row[0] for row in db.execute("SELECT id FROM boots")]

    def swept(self, boots: Iterable[str]) -> None:
        """Forget lives of which no sandbox is left."""
        with self._transaction() as db:
            db.executemany("DELETE FROM boots WHERE id = ?", [(boot,) for boot in boots])

    # How much there is

    def counts(self) -> dict[str, int]:
        """How many open claims, pending results, pending events and dead letters there are."""
        with self._reading() as db:
            lanes = dict(db.execute("SELECT lane, count(*) FROM outbox GROUP BY lane").fetchall())
            claimed = int(db.execute("SELECT count(*) FROM claims").fetchone()[0])
        named = {"pending": RESULTS, "events": EVENTS, "dead": DEAD}
        return {"claimed": claimed} | {state: lanes.get(lane, 0) for state, lane in named.items()}

    def load(self) -> Load:
        """How much the journal holds."""
        with self._reading() as db:
            pages, free, size = (
                int(db.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
            entries = db.execute("SELECT count(*) FROM outbox WHERE lane IN (?, ?)", (RESULTS, DEAD)).fetchone()[0]
            oldest = db.execute("SELECT min(at) FROM outbox WHERE lane = ?", (RESULTS,)).fetchone()[0]
        return Load((pages - free) * size, int(entries), oldest)

    def close(self) -> None:
        """Close the file and give up its lock."""
        with self._lock:
            self._file.close()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise JournalError(str(error)) from error


def _key(text: str | None) -> str:
    """Any text, or none, as SQLite can keep it: JSON in ASCII, since lone surrogates are no UTF-8."""
    return json.dumps(text)
