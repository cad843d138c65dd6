"""Where the .pyz unpacks itself: only where nobody but this user can put code. Called by `launch`, ahead of shiv.

Standard library only, and little of it: every command waits for this.
"""

import os
import stat
import sys
from typing import NoReturn

UNUSED_DAYS = 7


def main() -> NoReturn:
    """Unpack, unless that is done, and run the command line. Ends the process, with 64 where that is not safe."""
    archive = os.path.realpath(sys.argv[0])
    name = f"{os.path.basename(archive)}_{_build_id()}"
    root = _unpack(name)
    if root is None:
        _run_packed(archive)
    _claim(root, name)
    os.environ["SHIV_ROOT"] = root
    import _bootstrap  # type: ignore[import-not-found]  # shiv's own, in the archive

    _bootstrap.bootstrap()
    sys.exit()


def _build_id() -> str:
    import json

    about = json.loads(globals()["__loader__"].get_data("environment.json"))
    return str(about["build_id"])


def _unpack(name: str) -> str | None:
    """Unpack under SHIV_ROOT, or else under the user's own folder, or else under /tmp.

    Returns the folder under which `name` is now; None where nothing on this host can be written.
    """
    chosen = os.environ.get("SHIV_ROOT")
    if chosen:
        root = os.path.abspath(chosen)
        try:
            _unpack_in(root, name)
        except OSError as error:
            _refuse(f"crucible-worker cannot unpack itself in {root}: {error.strerror}.")
        return root
    for root in (os.path.expanduser("~/.shiv"), f"{os.environ.get('TMPDIR') or '/tmp'}/crucible-worker-{os.geteuid()}"):
        try:
            if os.path.isabs(root):
                _unpack_in(root, name)
                return root
        except OSError:
            continue
    return None


def _unpack_in(root: str, name: str) -> None:
    """Unpack, unless that is done. Raises OSError where nothing can be written."""
    # Whatever this user's mask allows, nobody else may write the code that runs, nor what Python compiles of it later.
    os.umask(os.umask(0o077) | 0o022)
    os.makedirs(root, exist_ok=True)
    target = os.path.join(root, name)
    fault = foreign(target)
    if fault:
        _refuse(f"crucible-worker does not unpack itself in {root}: {fault}.")
    if os.path.isdir(os.path.join(target, "site-packages")):
        return
    from pathlib import Path

    import _bootstrap

    with _bootstrap.current_zipfile() as packed:
        _bootstrap.extract_site_packages(packed, Path(target), bool(os.environ.get("SHIV_COMPILE_PYC")))


def foreign(folder: str) -> str | None:
    """Why another user could put code into `folder`, or None. It need not exist; where it is to be made must.

    Every folder on the way counts, and every link: each must be of this user, of root or of whoever has `/`, and only
    a folder above the last two may be written by others, where the sticky bit keeps them from what is not theirs.
    """
    trusted = {0, os.geteuid(), os.stat("/").st_uid}
    ways = [folder, os.path.realpath(folder)]
    for way in ways:
        path = way
        while path != "/":
            try:
                about = os.lstat(path)
            except FileNotFoundError:
                path = os.path.dirname(path)
                continue
            if about.st_uid not in trusted:
                return f"{path} belongs to {_user(about.st_uid)}"
            shared = about.st_mode & 0o022 and not stat.S_ISLNK(about.st_mode)
            above = path not in {way, os.path.dirname(way)}
            if stat.S_ISLNK(about.st_mode) and path == folder:
                return f"{path} is a link"
            if shared and not (above and about.st_mode & stat.S_ISVTX):
                return f"{path} can be written by others"
            path = os.path.dirname(path)
    return None


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _refuse(words: str) -> NoReturn:
    sys.stderr.write(f"{words} Set SHIV_ROOT to a folder that only {_user(os.geteuid())} can write.\n")
    sys.exit(64)


def _claim(root: str, name: str) -> None:
    """Lock what is unpacked for as long as this process lives, and remove what no process has used for a week."""
    import fcntl
    import re

    folder = os.path.join(root, name)
    # Never closed: systemd-tmpfiles(8), too, leaves a folder alone that is locked.
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)
    try:
        os.utime(folder)
    except OSError:
        return  # read-only, or another user's: not ours to clean
    earlier = re.compile(re.escape(name[:-64]) + r"[0-9a-f]{64}(\.tmp|\.old-\d+)?")
    for entry in os.scandir(root):
        if earlier.fullmatch(entry.name) and not entry.name.startswith(name) and entry.is_dir(follow_symlinks=False):
            _remove_unused(entry)


def _remove_unused(entry: "os.DirEntry[str]") -> None:
    import fcntl
    import shutil
    import time

    try:
        if time.time() - entry.stat(follow_symlinks=False).st_mtime < UNUSED_DAYS * 86400:
            return
        held = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Renamed first: what is half removed must not be taken for whole.
            doomed = entry.path if ".old-" in entry.name else f"{entry.path}.old-{os.getpid()}"
            os.rename(entry.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        finally:
            os.close(held)
    except OSError:
        pass  # in use, or gone


def _run_packed(archive: str) -> NoReturn:
    """Run from the archive itself, which starts slower and leaves nothing."""
    import types

    # certifi would copy its certificates into a file. The Docker SDK speaks to a socket, and we use the host's.
    certifi = types.ModuleType("certifi")
    certifi.where = certifi.contents = str  # type: ignore[attr-defined]
    sys.modules["certifi"] = certifi
    sys.path.insert(0, os.path.join(archive, "site-packages"))
    from crucible_worker.__main__ import main as run

    run()
