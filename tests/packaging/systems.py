"""What the one file is tried with: the Pythons of this host, and what Debian has that is newer."""

import shutil
import subprocess
import sys
from pathlib import Path

from precondition import unavailable

SID = Path(__file__).resolve().parents[2] / "build" / "sid"
PACKAGES = ("python3-all",)


def of_this_host() -> tuple[list[str], list[str]]:
    """The interpreters of this host, one of each version: those that are new enough, and those that are not."""
    named = (shutil.which(name) for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"))
    places = [sys.executable, "/usr/bin/python3", *named, *sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))]
    found = {}
    for place in filter(None, places):
        wanted = "import sys; print(*sys.version_info[:3]); print(getattr(sys, '_base_executable', sys.executable))"
        done = subprocess.run([place, "-I", "-c", wanted], capture_output=True, text=True)
        if done.returncode == 0:
            version, path = done.stdout.splitlines()
            found.setdefault(tuple(map(int, version.split())), path)
    split = [[path for version, path in sorted(found.items()) if (version >= (3, 11)) is new] for new in (True, False)]
    return split[0], split[1]


def sid(program: str) -> tuple[str, ...]:
    """A command for a program of Debian sid, which is unpacked beside this host's system and takes its /usr's place.

    Only that process sees it there; /tmp, the tree and the engine's socket are where they were.
    """
    return ("unshare", "--mount", "sh", "-ec", f'mount --bind {_unpacked()}/usr /usr\nexec "$@"', "sh", program)


def pythons_of_sid() -> list[tuple[str, ...]]:
    """A command for each Python of Debian sid."""
    return [sid(f"/usr/bin/{path.name}") for path in sorted(_unpacked().glob("usr/bin/python3.[0-9]*"))]


def _unpacked() -> Path:
    if not SID.exists():
        part = SID.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        # A mirror may be a snapshot of an earlier day.
        command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(PACKAGES)}", "sid", part]
        options = ["--aptopt=Acquire::Check-Valid-Until false", "--aptopt=Acquire::Retries 3"]
        if shutil.which("mmdebstrap") is None:
            unavailable("mmdebstrap is missing")
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
        if done.returncode:
            unavailable(f"Debian sid's packages cannot be had: {done.stderr[-500:]}")
        part.rename(SID)
    return SID
