"""Runs as a program in the Python that an image is made from: says what it loads, and compiles its library.

It stands alone, since that Python knows nothing of this package. Its argument is an empty folder for the .pyc files;
it prints one JSON object.
"""

import contextlib
import importlib
import json
import os
import py_compile
import sys
import sysconfig
from pathlib import Path

# What a sandbox has no use for: tests, the test's and Tk's programs, installers and what they installed.
DROPPED = frozenset(
    {
        "EXTERNALLY-MANAGED",
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "site-packages",
        "sitecustomize.py",
        "test",
        "tests",
        "tkinter",
        "turtle.py",
        "turtledemo",
        "usercustomize.py",
    }
)


def _kept(name: str) -> bool:
    # config-3.11-x86_64-linux-gnu holds the static library, _test* serve Python's own tests, _tkinter needs X.
    return name not in DROPPED and not name.startswith(("_test", "_tkinter.", "config-", "xx"))


def _library(root: Path) -> list[str]:
    """The files of the standard library, relative to `root` and sorted."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _kept(name)]
        paths = [Path(folder, name) for name in files if _kept(name)]
        found += [str(path.relative_to(root)) for path in paths if path.is_file()]
    return sorted(found)


def _compile(root: Path, files: list[str], prefix: str, target: Path) -> list[str]:
    """Compile what is Python among `files` below `target`; the names of those that compile.

    The .pyc are never checked against their sources: in a read-only image both stay as they are.
    """
    done = []
    for name in files:
        if not name.endswith(".py"):
            continue
        with contextlib.suppress(py_compile.PyCompileError):
            py_compile.compile(
                str(root / name),
                str(target / f"{name}c"),
                dfile=f"{prefix}/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            done.append(name)
    return done


def _import_extensions(folder: Path) -> None:
    """Load every extension module, and with it every shared library that it needs."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in sorted(path.name for path in folder.glob("*.so")):
        if _kept(name) and name.endswith((suffix, ".abi3.so")):
            # A module may lack its library here as it would there; what it raises is its own affair.
            with contextlib.suppress(BaseException):
                importlib.import_module(name.partition(".")[0])


def _mapped() -> list[str]:
    """The shared objects in this process's memory."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return sorted(path for path in paths if ".so" in Path(path).name and Path(path).is_file())


def _load_late_libraries() -> None:
    # glibc opens this one only when a thread is cancelled or exits early, and aborts where it is missing.
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def main(target: Path) -> None:
    """Compile into `target` and print what an image of this Python consists of."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(sysconfig.get_path("stdlib"))
    extensions = Path(sysconfig.get_path("platstdlib"), "lib-dynload")
    prefix = f"/usr/local/{sys.platlibdir}/{version}"
    files = _library(library)
    compiled = _compile(library, files, prefix, target)
    _import_extensions(extensions)
    with contextlib.suppress(ImportError):
        _load_late_libraries()
    document = {
        "name": version,
        "version": sys.version.split()[0],
        "executable": os.path.realpath(sys.executable),
        "prefix": prefix,
        "library": str(library),
        "files": files,
        "compiled": compiled,
        "cache_tag": sys.implementation.cache_tag,
        "shared": _mapped(),
        "extensions": str(extensions),
    }
    # A module may have printed while it was imported; the last line is ours.
    sys.stdout.write(f"\n{json.dumps(document)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
