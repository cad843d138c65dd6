"""Packages of other releases of Debian than this host's, unpacked beside its system."""

import shutil
import subprocess
from pathlib import Path

from precondition import unavailable

BUILD = Path(__file__).resolve().parents[2] / "build"


def unpacked(suite: str, package: str) -> Path:
    """The root of a file system with this package and all that it needs, made once."""
    root = BUILD / f"{suite}-{package}"
    if not root.exists():
        part = root.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        # A mirror may be a snapshot of an earlier day.
        command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={package}", suite, part]
        options = ["--aptopt=Acquire::Check-Valid-Until false", "--aptopt=Acquire::Retries 3"]
        if shutil.which("mmdebstrap") is None:
            unavailable("mmdebstrap is missing")
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
        if done.returncode:
            unavailable(f"Debian {suite}'s packages cannot be had: {done.stderr[-500:]}")
        part.rename(root)
    return root
