"""Opens the queue's SQLite file: its schema, its version, and one clear line where it cannot be used."""

import contextlib
import os
import sqlite3
from pathlib import Path

from crucible_worker.errors import ExitCode, ExitError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x43525142  # "CRQB", so that somebody else's database is never mistaken for a queue

# `eval_id` and the other texts hold JSON in ASCII: SQLite's own text cannot carry NULs and lone surrogates everywhere.
# `lease` outlives its expiry until the next claim, so that a late result which nobody else works on is still taken.
# The large columns come last, so that a scan of the small ones does not read them.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE task (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    eval_id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'completed', 'failed')),
    priority INTEGER NOT NULL,
    language TEXT NOT NULL,
    engine TEXT NOT NULL,
    labels TEXT NOT NULL,
    timeout REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    cancel INTEGER NOT NULL DEFAULT 0,
    lease TEXT,
    expires REAL,
    settled_by TEXT,
    submitted REAL NOT NULL,
    started REAL,
    settled REAL,
    body TEXT NOT NULL,
    outcome TEXT
);
CREATE INDEX task_queued ON task (priority DESC, seq) WHERE state = 'queued';
CREATE INDEX task_leased ON task (expires) WHERE state = 'leased';
CREATE INDEX task_settled ON task (settled, seq) WHERE settled IS NOT NULL;
CREATE INDEX task_state ON task (state);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


def connect(path: str) -> sqlite3.Connection:
    """A connection to the queue's database at `path`, made if missing; `:memory:` keeps nothing.

    The file is this process's alone while open. Raises ExitError (64) where it is somebody else's, damaged,
    written by a newer version, in use, or cannot be opened.
    """
    if path != ":memory:":
        _make_private(path)
    try:
        db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _unusable(path, str(error)) from None
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        if "locked" in str(error):
            raise _unusable(path, "another process has it open") from None
        raise _unusable(path, str(error)) from None
    except ExitError:
        db.close()
        raise
    return db


def _make_private(path: str) -> None:
    """Create the file readable by its owner only: it holds other people's code and results."""
    with contextlib.suppress(FileExistsError):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise
        except (OSError, ValueError) as error:
            raise _unusable(path, getattr(error, "strerror", None) or str(error)) from None
    if not Path(path).is_file():
        raise _unusable(path, "it is not a file")


def _prepare(db: sqlite3.Connection, path: str) -> None:
    # Exclusive before WAL: the index then lives in this process, and a second server on the file is refused.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    application, version, tables = (
        db.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if not tables and not application and not version:
        db.executescript(_SCHEMA)
    elif application != APPLICATION_ID:
        raise _unusable(path, "it is the database of another program")
    elif version > SCHEMA_VERSION:
        raise _unusable(path, f"a newer version wrote it (schema {version}; this one knows {SCHEMA_VERSION})")
    # Takes the lock now and not at the first task, and reads every page that a start has to trust.
    db.execute("BEGIN IMMEDIATE")
    db.execute("SELECT state, count(*) FROM task GROUP BY state").fetchall()
    db.execute("COMMIT")


def _unusable(path: str, why: str) -> ExitError:
    return ExitError(
        ExitCode.USAGE, f"the queue's database {path} cannot be used: {why}; choose another with --database."
    )
