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


def _library(root: str) -> list[str]:
    """The files of the standard library, relative to `root` and sorted."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _kept(name)]
        found += [
            os.path.relpath(os.path.join(folder, name), root)
            for name in files
            if _kept(name) and os.path.isfile(os.path.join(folder, name))
        ]
    return sorted(found)


def _compile(root: str, files: list[str], prefix: str, target: str) -> list[str]:
    """Compile what is Python among `files` below `target`; the names of those that compile.

    The .pyc are never checked against their sources: in a read-only image both stay as they are.
    """
    done = []
    for name in files:
        if not name.endswith(".py"):
            continue
        with contextlib.suppress(py_compile.PyCompileError):
            py_compile.compile(
                os.path.join(root, name),
                os.path.join(target, name + "c"),
                dfile=f"{prefix}/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            done.append(name)
    return done


def _import_extensions(folder: str) -> None:
    """Load every extension module, and with it every shared library that it needs."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if _kept(name) and name.endswith((suffix, ".abi3.so")):
            # A module may lack its library here as it would there; what it raises is its own affair.
            with contextlib.suppress(BaseException):
                importlib.import_module(name.partition(".")[0])


def _mapped() -> list[str]:
    """The shared objects in this process's memory."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in lines if line.count("/")}
    return sorted(path for path in paths if ".so" in os.path.basename(path) and os.path.isfile(path))


def _load_late_libraries() -> None:
    # glibc opens this one only when a thread is cancelled or exits early, and aborts where it is missing.
    import ctypes

    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def main(target: str) -> None:
    """Compile into `target` and print what an image of this Python consists of."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = sysconfig.get_path("stdlib")
    extensions = os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload")
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
        "library": library,
        "files": files,
        "compiled": compiled,
        "cache_tag": sys.implementation.cache_tag,
        "shared": _mapped(),
        "extensions": extensions,
    }
    # A module may have printed while it was imported; the last line is ours.
    print("\n" + json.dumps(document))


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
