"""The Pythons that the one file is tried with: those of this host, and the newest that Debian has."""

import shutil
import subprocess
import sys
from pathlib import Path

from debian import unpacked


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


def of_debian_sid() -> list[tuple[str, ...]]:
    """A command for each Python of Debian sid, which is unpacked beside this host's system and takes its /usr's place.

    Only that process sees it there; /tmp, the tree and the engine's socket are where they were.
    """
    system = unpacked("sid", "python3-all")
    inside = f'mount --bind {system}/usr /usr\nexec "$@"'
    found = sorted(system.glob("usr/bin/python3.[0-9]*"))
    return [("unshare", "--mount", "sh", "-ec", inside, "sh", f"/usr/bin/{path.name}") for path in found]
