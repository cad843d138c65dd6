"""`run`: puts the worker together by hand, starts its threads, and waits for the end."""

import argparse
from collections.abc import Mapping

from crucible_worker import lifecycle
from crucible_worker.cli import options
from crucible_worker.errors import ExitCode

EXAMPLE = """TERM or INT: finish the running task, deliver, exit 0. Again: end the task as worker_shutdown. A third
time: exit at once. QUIT: straight to the second. HUP: read the key and the certificates again.

Example:
  QUEUE_SERVICE_URL=http://queue:8081 API_KEY_FILE=/run/secrets/key crucible-worker.pyz run

Exit codes: 0 done, 64 usage, 70 stalled, 75 results still undelivered, 77 key refused,
130 a third signal."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Every setting is a flag."""
    parser.add_argument("--print-config", action="store_true", help="show every setting and its source, and exit")
    options.add_settings(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Work until told to stop. Returns the documented exit code."""
    lifecycle.hold_signals()
    loaded = options.read_settings(args, environ)
    if args.print_config:
        for name, value, source in loaded.rows():
            print(f"{name:<22} {value or '(empty)':<40} {source}")
        return ExitCode.OK
    lifecycle.return_memory()
    # Late: the libraries behind it take most of the start-up time.
    from crucible_worker.cli.service import Service

    return Service(loaded, environ).run()
