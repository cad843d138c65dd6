"""What this host must have: a Python, a folder that only we write, a state directory, room on its disk, a clock."""

import contextlib
import datetime as dt
import errno
import fcntl
import importlib
import os
import pwd
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from crucible_worker import statefile
from crucible_worker.doctor.checks import Finding, failed, passed, skipped, warned

OLDEST_PYTHON = (3, 11)
# Distributions split these off, and a Python built by hand may lack them.
MODULES = ("sqlite3", "ssl", "ctypes", "zlib")
# Nothing of ours is older: a clock before it is a battery that is empty.
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MAX_SKEW_SECONDS = 60.0
NEED_CLOCK = "set the clock: timedatectl set-ntp true"


def python(version: Sequence[int] = sys.version_info[:3], modules: Sequence[str] = MODULES) -> Finding:
    """The interpreter, and the parts of its library that it may have been built without."""
    words = f"Python {'.'.join(map(str, version))} at {sys.executable}"
    if tuple(version[:2]) < OLDEST_PYTHON:
        return failed(words, "start it with Python 3.11 or newer")
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return failed(
                f"{words} lacks the module {module}: {error}", "install all of Python: apt-get install python3"
            )
    return passed(words)


def unpacked(program: str, package: Path) -> Finding:
    """Where the archive has unpacked itself: code that another user may write is another user's code."""
    if not program.endswith(".pyz"):
        return passed(f"runs from {package}, unpacks nothing")
    if not package.is_dir():
        return passed("nothing can be written: it runs packed, and starts slower")
    for folder in (package, *package.parents):
        about = folder.stat()
        others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not about.st_mode & stat.S_ISVTX
        if about.st_uid not in {0, os.geteuid()} or others:
            mend = f"chmod go-w {folder}, or set SHIV_ROOT to a folder that only {_user(os.geteuid())} can write"
            return failed(f"{folder}, where it is unpacked, can be written by others than {_user(os.geteuid())}", mend)
    return passed(f"unpacked in {package.parent}")


def state(directory: str) -> Finding:
    """The state directory can be written and locked. Leaves nothing in it."""
    setting = "set CRUCIBLE_STATE_DIR to a writable directory"
    if directory == statefile.MEMORY:
        return warned("memory: a crash loses claims and results", setting)
    folder = Path(directory)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        return failed(f"{existing} is not a directory", setting)
    uid = os.geteuid()
    mend = f"chown {_user(uid)} {folder}, or {setting}" if existing == folder else f"mkdir -p {folder}, or {setting}"
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return failed(f"{existing} cannot be written by {_user(uid)}: {error.strerror}", mend)
    if existing != folder:
        return passed(f"{folder} can be made")
    owner = folder.stat().st_uid
    if owner != uid:
        words = f"{folder} belongs to {_user(owner)}, and this is {_user(uid)}: what is found here holds for the latter"
        return warned(words, f"run this as the worker's user: runuser -u {_user(owner)} -- …, or chown {folder}")
    return _unlocked(folder)


def _unlocked(folder: Path) -> Finding:
    """Whether a worker holds the directory. Its lock is not made here: it would belong to whoever looks."""
    with contextlib.suppress(FileNotFoundError):
        lock = os.open(folder / "lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "nothing to mend if that is this worker; a second one needs a CRUCIBLE_STATE_DIR of its own"
            return warned(f"{folder} is in use by a running worker", mend)
        finally:
            os.close(lock)
    return passed(f"{folder} can be written and locked")


def disk(directory: str, reserve: int) -> Finding:
    """Room for the journal: below `reserve` bytes nothing is claimed."""
    if directory == statefile.MEMORY:
        return skipped("the journal is in memory")
    folder = next(place for place in (Path(directory), *Path(directory).absolute().parents) if place.exists())
    free, inodes = shutil.disk_usage(folder).free, os.statvfs(folder)
    words = f"{free >> 20} MiB free for {directory}"
    mend = f"make room on the disk of {folder}, or set CRUCIBLE_STATE_DIR to another (CRUCIBLE_DISK_RESERVE: {reserve})"
    if free < reserve or (inodes.f_files and inodes.f_favail < 16):
        return failed(f"{words}, {inodes.f_favail} inodes: nothing would be claimed", mend)
    return warned(words, mend) if free < 2 * reserve else passed(words)


def clock(now: dt.datetime) -> Finding:
    """The time of day is possible. The queue's clock is compared with it later."""
    words = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return passed(words) if now >= EPOCH else failed(f"{words} is in the past", NEED_CLOCK)


def address(text: str) -> Finding:
    """The worker can listen for health checks there."""
    host, _, port = text.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    mend = "set CRUCIBLE_HEALTH_ADDRESS to another"
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return warned(f"{text} is in use", f"nothing to mend if that is this worker; otherwise {mend}")
        return failed(f"{text}: {error.strerror or error}", mend)
    return passed(f"{text} is free")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
