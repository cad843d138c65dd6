"""Code from files and standard input."""

import sys
from pathlib import Path

from crucible_worker.errors import ExitCode, ExitError


def read_code(name: str) -> str:
    """The text of a file; `-` is standard input. Raises ExitError (64) where it cannot be read, or is not UTF-8."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode()
    except OSError as error:
        raise ExitError(ExitCode.USAGE, f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ExitError(ExitCode.USAGE, f"{name} is not UTF-8 text, which is what tasks carry.") from None
