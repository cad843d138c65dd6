"""The journal's file: locked against a second worker, set aside where it cannot be read, made where there is none."""

import datetime as dt
import fcntl
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from crucible_worker.errors import ExitCode, ExitError

MEMORY = "memory"
SCHEMA_VERSION = 3
_BUSY_SECONDS = 5.0
_FILE, _LOCK = "journal.db", "lock"
# Ids are never given twice: a delivery remembers entries by theirs.
_SCHEMA = """
CREATE TABLE claims (id INTEGER PRIMARY KEY AUTOINCREMENT, eval_id TEXT NOT NULL, lease TEXT, engine TEXT NOT NULL,
                     at REAL NOT NULL, run TEXT);
CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, lane TEXT NOT NULL, kind TEXT NOT NULL,
                     eval_id TEXT NOT NULL, lease TEXT, at REAL NOT NULL, answer TEXT, body BLOB NOT NULL);
CREATE INDEX outbox_lane ON outbox (lane, id);
CREATE TABLE boots (id TEXT PRIMARY KEY);
CREATE TABLE crashes (eval_id TEXT PRIMARY KEY, count INTEGER NOT NULL, at REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class StateFile:
    """An open journal. `lock` is held while it is; `set_aside` says what was found instead of it, if anything."""

    db: sqlite3.Connection
    lock: int | None = None
    set_aside: str | None = None

    def close(self) -> None:
        """Close it, and let others have it."""
        self.db.close()
        if self.lock is not None:
            os.close(self.lock)


class _UnusableError(Exception):
    """The file is no journal, or not one of ours."""


def in_memory() -> StateFile:
    """A journal that ends with the process."""
    return StateFile(_connect(":memory:"))


def own(directory: str) -> StateFile:
    """Open or make the journal of a worker. One that cannot be read is renamed, never deleted.

    Raises ExitError (64) where the directory cannot be written, or another worker has it.
    """
    folder = Path(directory)
    lock = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_directory(directory)
        try:
            return StateFile(_connect(str(folder / _FILE)), lock)
        except _UnusableError as error:
            words = _set_aside(folder, str(error))
            return StateFile(_connect(str(folder / _FILE)), lock, words)
    except (OSError, sqlite3.Error) as error:
        if lock is not None:
            os.close(lock)
        raise ExitError(
            ExitCode.USAGE,
            f"the state directory {directory} cannot be used ({error}); "
            "set CRUCIBLE_STATE_DIR to a writable one, or to memory, where a crash loses results.",
        ) from error


def lock_directory(directory: str) -> int:
    """Lock a state directory; close the descriptor to unlock. Raises ExitError (64) where another worker has it."""
    lock = os.open(Path(directory) / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        words = f"another worker uses {directory}; give this one its own CRUCIBLE_STATE_DIR."
        raise ExitError(ExitCode.USAGE, words) from None
    return lock


def visit(directory: str) -> StateFile:
    """Open a journal that a worker may be using. Raises ExitError (64) where there is none that can be read."""
    path = Path(directory) / _FILE
    if directory == MEMORY or not path.is_file():
        words = f"there is no journal in {directory}; CRUCIBLE_STATE_DIR says where the worker keeps it."
        raise ExitError(ExitCode.USAGE, words)
    try:
        return StateFile(_connect(str(path)))
    except (_UnusableError, sqlite3.Error) as error:
        raise ExitError(ExitCode.USAGE, f"the journal {path} cannot be read: {error}.") from error


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
    try:
        _prepare(db)
    except BaseException as error:
        db.close()
        if _damaged(error):
            raise _UnusableError(f"is damaged ({error})") from error
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    # Its own cache would grow to 2 MB of results that are written once and read once.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-256"):
        db.execute(f"PRAGMA {pragma}")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, SCHEMA_VERSION}:
        age = "a newer" if version > SCHEMA_VERSION else "an older"
        raise _UnusableError(f"was written by {age} crucible-worker, which can still deliver it")
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _UnusableError(f"is damaged ({found})")
    if version == 0:
        db.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")


def _damaged(error: BaseException) -> bool:
    """Whether SQLite says that the file itself is at fault, not its surroundings."""
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorname", "") in {
        "SQLITE_NOTADB",
        "SQLITE_CORRUPT",
    }


def _set_aside(folder: Path, what: str) -> str:
    """Rename a journal with all its parts. Returns one sentence about it."""
    moment = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    target = next(p for n in range(1000) if not (p := folder / f"{_FILE}.set-aside-{moment}-{n}").exists())
    for suffix in ("", "-wal", "-shm"):
        part = folder / f"{_FILE}{suffix}"
        if part.exists():
            part.rename(f"{target}{suffix}")
    return f"{folder / _FILE} {what}; it is kept as {target.name}, and results may be in it"
