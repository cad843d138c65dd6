"""Code from files, folders, patterns and standard input."""

import glob
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.model import PYTHON_FILE, Language

STDIN = "-"


def expand(names: Iterable[str], suffix: str) -> list[str]:
    """The files that are meant: a folder stands for all in it that end in `suffix`, a pattern for what it matches.

    Raises ExitError (64) where one stands for nothing, or standard input is named twice.
    """
    found = [file for name in names for file in _meant(name, suffix)]
    if found.count(STDIN) > 1:
        raise ExitError(ExitCode.USAGE, "standard input (-) can be only one of the files.")
    return found


def suffix_of(languages: Mapping[str, Language], language: str) -> str:
    """How files of a language end, such as .py."""
    return PurePath(languages[language].file if language in languages else PYTHON_FILE).suffix


def _meant(name: str, suffix: str) -> list[str]:
    path = Path(name)
    if name == STDIN or path.is_file():
        return [name]
    if path.is_dir():
        inside = (file for file in path.rglob(f"*{suffix}") if file.is_file())
        visible = (file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))
        found = sorted(map(str, visible))
        if not found:
            raise ExitError(ExitCode.USAGE, f"{name} holds no file that ends in {suffix or 'anything'}.")
        return found
    if glob.has_magic(name):
        found = sorted(
            file
            for file in glob.glob(name, recursive=True)  # noqa: PTH207 - a pattern may be absolute
            if Path(file).is_file()
        )
        if not found:
            raise ExitError(ExitCode.USAGE, f"no file matches {name}.")
        return found
    return [name]  # reading it says what is wrong


def read_code(name: str) -> str:
    """The text of a file; `-` is standard input. Raises ExitError (64) where it cannot be read, or is not UTF-8."""
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
        return data.decode()
    except OSError as error:
        raise ExitError(ExitCode.USAGE, f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ExitError(ExitCode.USAGE, f"{name} is not UTF-8 text, which is what tasks carry.") from None
