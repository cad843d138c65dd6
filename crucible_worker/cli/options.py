"""Flags for settings, made from their declarations, and reading them with the environment and the file."""

import argparse
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from crucible_worker import settings
from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.settings import Loaded

_T = TypeVar("_T")


def add_settings(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Add a flag for each setting, or for those in `names`."""
    group = parser.add_argument_group("settings", "Flag, then environment, then file, then default.")
    group.add_argument("--config", metavar="FILE", help="TOML file of settings [CRUCIBLE_CONFIG]")
    for d in settings.describe():
        if names is None or d.name in names:
            shown = "" if d.secret else f" (default: {d.default or 'empty'})"
            dest = f"setting_{d.name}_file" if d.secret else f"setting_{d.name}"
            source = f"{d.env}, {d.env}_FILE" if d.secret else d.env
            group.add_argument(d.flag, dest=dest, metavar="V", help=f"{d.help}{shown} [{source}]")


def flag(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """A reader of settings as the type of a flag, whose errors say what was expected."""

    def typed(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def read_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """The settings of this command line. Raises ExitError (64) for anything wrong with them."""
    flags = {
        name.removeprefix("setting_"): value
        for name, value in vars(args).items()
        if name.startswith("setting_") and value is not None
    }
    path = args.config or environ.get("CRUCIBLE_CONFIG")
    return settings.load(flags, environ, _read_file(path) if path else {})


def _read_file(path: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExitError(ExitCode.USAGE, f"the configuration file {path} cannot be read: {error}.") from None
