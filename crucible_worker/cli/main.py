"""Finds the command, parses its arguments, and turns our errors into one line and an exit code."""

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol, TextIO

from crucible_worker import __version__
from crucible_worker.errors import ExitCode, ExitError

COMMANDS: Mapping[str, str] = {
    "run": "pull tasks from the queue and run them (the default)",
    "exec": "run files in the same sandbox, without a queue",
    "submit": "put files into the queue, and wait for their verdicts",
    "queue": "serve the embedded queue",
    "demo": "show a queue, a worker and a handful of evaluations",
    "image": "build or check the sandbox image, offline",
    "doctor": "look at everything that a worker needs, and say what mends it",
    "journal": "look at what waits for the queue, and at what it refused",
    "cleanup": "remove sandboxes that a worker of this id has left behind",
    "healthcheck": "ask a running worker whether it is healthy",
    "completion": "print what makes a shell complete these commands",
    "version": "print the version",
}
_STDERR = 2
_OUTPUT_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Command(Protocol):
    """What a module of this folder offers. `arguments` declares its flags; `run` returns the exit code."""

    EXAMPLE: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's flags to `parser`."""

    def run(self, args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Do it. May raise ExitError."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExitError(ExitCode.USAGE, f"{message}. See '{self.prog} --help'.")

    def print_help(self, file: Any = None) -> None:  # noqa: ANN401 - as argparse has it
        """Argparse's own takes it for shown whether it could be written or not."""
        print(self.format_help(), end="", file=file)


def load(name: str) -> tuple[Command, argparse.ArgumentParser]:
    """One of COMMANDS, and the parser of its arguments."""
    command: Command = importlib.import_module(f"crucible_worker.cli.{name}_command")
    parser = _Parser(
        prog=f"crucible-worker {name}",
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        epilog=command.EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.arguments(parser)
    return command, parser


def main(argv: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; prints errors as one line on stderr."""
    _open_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
    except ExitError as error:
        _complain(str(error))
        return error.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Die as other Unix filters do, silently.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        return ExitCode.FAILED
    except OSError as error:
        if error.errno not in _OUTPUT_FAILS or error.filename is not None:
            raise
        _close(sys.stdout)
        _complain(f"the output cannot be written: {error.strerror}.")
        return ExitCode.FAILED
    return code


def _run(argv: Sequence[str]) -> int:
    name, rest = _split(argv)
    if name is None:
        print(_overview())
        return ExitCode.OK
    if name not in COMMANDS:
        raise ExitError(ExitCode.USAGE, f"unknown command '{name}'. Known: {', '.join(COMMANDS)}.")
    command, parser = load(name)
    try:
        args = parser.parse_args(rest)
    except SystemExit:  # argparse has shown the help
        return ExitCode.OK
    return command.run(args, os.environ)


def _open_streams() -> None:
    """Open what of them was closed when we were started, or the next socket would be taken for one."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def _complain(message: str) -> None:
    try:
        print(f"crucible-worker: {message}", file=sys.stderr, flush=True)
    except OSError:
        _close(sys.stderr)


def _close(stream: TextIO) -> None:
    """Give up a stream that takes nothing, or the interpreter would try again at its end, and fail by that."""
    with suppress(OSError):
        stream.close()


def _split(argv: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The command's name and its arguments; None asks for the overview."""
    if argv and argv[0] in {"-h", "--help", "help"}:
        return None, []
    if argv and argv[0] == "--version":
        return "version", argv[1:]
    if not argv or argv[0].startswith("-"):
        return "run", argv
    return argv[0], argv[1:]


def _overview() -> str:
    rows = "\n".join(f"  {name:<13} {summary}" for name, summary in COMMANDS.items())
    return (
        f"crucible-worker {__version__}: runs untrusted evaluation code from a queue in Docker or gVisor sandboxes.\n\n"
        f"Usage: crucible-worker.pyz [COMMAND] [OPTIONS]\n\n{rows}\n\n"
        "crucible-worker.pyz COMMAND --help shows a command's options, with an example."
    )
