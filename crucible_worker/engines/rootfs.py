"""What a sandbox image made from a Python of this host holds: that Python, its libraries, and nothing else."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from crucible_worker.engines.elf import ElfFile
from crucible_worker.errors import ExitCode, ExitError

_PROBE_SECONDS = 300
_OLDEST = (3, 11)
_TIME_ZONES = "/usr/share/zoneinfo"
_LOCALE = "/usr/lib/locale/C.utf8"

_ACCOUNTS: Mapping[str, bytes] = {
    "etc/passwd": b"root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/sandbox:/sbin/nologin\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    # Without it glibc asks services that an image without a network does not have.
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files\n",
}
_FOLDERS: Mapping[str, int] = {"dev": 0o755, "proc": 0o755, "sandbox": 0o755, "sys": 0o755, "tmp": 0o1777}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the image: a file's bytes or the host's file they come from, a link's target, or a folder.

    `owner` is its user and group.
    """

    source: Path | bytes | None = None
    link: str | None = None
    mode: int = 0o644
    owner: int = 0

    def read(self) -> bytes:
        """The bytes as they go into the image; programs and libraries come without debug information."""
        data = self.source if isinstance(self.source, bytes) else Path(self.source or os.devnull).read_bytes()
        return ElfFile(data).loadable() if data[:4] == b"\x7fELF" else data


@dataclass(frozen=True, slots=True)
class HostPython:
    """A Python of this host, taken apart. Paths are the host's, except `prefix`, which is the image's."""

    name: str
    version: str
    executable: str
    prefix: str
    library: str
    files: list[str]
    compiled: list[str]
    cache_tag: str
    shared: list[str]
    extensions: str

    @property
    def architecture(self) -> str:
        """The CPU it is made for, as OCI images name it."""
        return ElfFile.read(self.executable).architecture


def inspect_python(executable: str, compiled: Path) -> HostPython:
    """Take the Python at `executable` apart, and compile its library into the empty folder `compiled`.

    Raises ExitError (64) where that is no Python of 3.11 or newer.
    """
    program = resources.files(__package__).joinpath("host_probe.py").read_text(encoding="utf-8")
    # Not -I: it would ignore the fixed hash seed, on which the bytes of a .pyc may depend.
    command = [executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", program, str(compiled)]
    environment = {"PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1", "PATH": os.defpath}
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own interpreter, and a program of ours
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
        found = HostPython(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExitError(ExitCode.USAGE, f"{executable} cannot be started: {error}.") from error
    except (ValueError, TypeError, IndexError) as error:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        message = f"{executable} is not a Python of {_OLDEST[0]}.{_OLDEST[1]} or newer: {last[:200]}"
        raise ExitError(ExitCode.USAGE, message) from error
    return found


def entries(python: HostPython, compiled: Path) -> dict[str, Entry]:
    """Everything in the image by its path without the leading slash."""
    tree: dict[str, Entry] = {path: Entry(content) for path, content in _ACCOUNTS.items()}
    tree |= {path: Entry(mode=mode) for path, mode in _FOLDERS.items()}
    tree |= _program(python) | _library(python, compiled) | _shared(python)
    return tree | _copied(_LOCALE) | _copied(_TIME_ZONES)


def with_folders(tree: Mapping[str, Entry]) -> dict[str, Entry]:
    """A tree with the folders that its paths go through."""
    whole = dict(tree)
    for path in tree:
        for parent in list(PurePosixPath(path).parents)[:-1]:
            whole.setdefault(str(parent), Entry(mode=0o755))
    return whole


def _program(python: HostPython) -> dict[str, Entry]:
    return {
        f"usr/local/bin/{python.name}": Entry(Path(python.executable), mode=0o755),
        "usr/local/bin/python3": Entry(link=python.name),
        "usr/local/bin/python": Entry(link="python3"),
    }


def _library(python: HostPython, compiled: Path) -> dict[str, Entry]:
    prefix = python.prefix.lstrip("/")
    tree = {
        f"{prefix}/{name}": Entry(Path(python.library, name), mode=0o755 if name.endswith(".so") else 0o644)
        for name in python.files
    }
    for name in python.compiled:
        place = PurePosixPath(name)
        cached = place.parent / "__pycache__" / f"{place.stem}.{python.cache_tag}.pyc"
        tree[f"{prefix}/{cached}"] = Entry(compiled / f"{name}c")
    return tree


def _shared(python: HostPython) -> dict[str, Entry]:
    """The shared libraries, by the names the loader asks for, in a folder that it searches: that of the C library."""
    loader = ElfFile.read(python.executable).interpreter
    libraries = [path for path in python.shared if not path.startswith(python.extensions + "/")]
    home = next((str(Path(path).parent) for path in libraries if Path(path).name == "libc.so.6"), "/usr/lib")
    tree: dict[str, Entry] = {}
    for path in libraries:
        name = ElfFile.read(path).soname or Path(path).name
        tree[f"{home}/{name}".lstrip("/")] = Entry(Path(path), mode=0o755)
    if loader is not None:
        # The kernel looks for it at this very path, and by then it also answers to its name.
        tree.pop(f"{home}/{Path(loader).name}".lstrip("/"), None)
        tree[loader.lstrip("/")] = Entry(Path(loader).resolve(), mode=0o755)
    return tree


def _copied(folder: str) -> dict[str, Entry]:
    """The files below a folder of the host, if it has it; links are followed."""
    tree: dict[str, Entry] = {}
    for parent, folders, files in os.walk(folder):
        # The tz database's variants: "right" counts leap seconds, "posix" repeats the rest.
        folders[:] = [name for name in folders if name not in {"right", "posix"}]
        for name in files:
            path = Path(parent, name)
            if path.is_file():
                tree[str(path).lstrip("/")] = Entry(path)
    return tree
