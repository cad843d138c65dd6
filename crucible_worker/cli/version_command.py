"""`version`: one line, without importing anything that costs time."""

import argparse
import platform
from collections.abc import Mapping

from crucible_worker import __version__
from crucible_worker.errors import ExitCode

EXAMPLE = "Example:\n  crucible-worker.pyz version"


def arguments(parser: argparse.ArgumentParser) -> None:
    """`version` has no flags."""
    del parser


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the version of the worker and of its Python."""
    del args, environ
    print(f"crucible-worker {__version__} (Python {platform.python_version()})")
    return ExitCode.OK
