"""`exec`: files in the same sandbox that a worker uses, without a queue."""

import argparse
import datetime as dt
import json
import sys
import threading
from collections.abc import Mapping

from crucible_worker.cli import composition, options
from crucible_worker.cli.files import read_code
from crucible_worker.engines.fleet import Fleet
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.model import DEFAULT_ENGINE, DEFAULT_LANGUAGE, DEFAULT_TIMEOUT, Reason, Result, Status, Task
from crucible_worker.settings import Settings

EXAMPLE = """A single file's output appears as it is, its verdict on stderr. Several files, or --json, give a line each.

Examples:
  crucible-worker.pyz exec solution.py
  echo 'print(6 * 7)' | crucible-worker.pyz exec --engine gvisor --json -

Exit codes: 0 all completed, 1 one did not, 64 usage, 69 no engine works."""

_END_SECONDS = 20.0
_SETTINGS = frozenset(
    {
        "docker_host", "engines", "engine_fallback", "languages", "pull", "images_allowed",
        "memory", "cpus", "processes", "open_files",
        "file_size", "tmp_size", "output", "output_limit", "artifacts", "timeout_max",
    }
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, and how."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="code to run; - is standard input")
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="docker or gvisor (default: %(default)s)")
    parser.add_argument("--language", default=DEFAULT_LANGUAGE, help="what the files are written in (%(default)s)")
    parser.add_argument("--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="S", help="seconds (%(default)g)")
    parser.add_argument("--arg", action="append", default=[], metavar="A", help="an argument for it; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one RESULT object a line")
    options.add_settings(parser, _SETTINGS)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run every file, in order. Raises ExitError (64 or 69)."""
    settings = options.read_settings(args, environ).settings
    given = tuple(args.arg)
    tasks = [Task(n, read_code(n), args.language, args.engine, args.timeout, args=given) for n in args.files]
    fleet = composition.fleet(settings)
    completed = True
    try:
        fleet.probe_all()
        engine = _engine(fleet, args.engine)
        for task in tasks:
            completed &= _show(_evaluate(fleet, engine, task, settings), as_json=args.json, alone=len(tasks) == 1)
    finally:
        fleet.close(_END_SECONDS)
    return ExitCode.OK if completed else ExitCode.FAILED


def _engine(fleet: Fleet, requested: str) -> str:
    try:
        engine = fleet.choose(requested)
    except TaskError as error:
        raise ExitError(ExitCode.NO_ENGINE, f"{error}.") from None
    if engine != requested:
        detail = fleet.states()[requested].detail
        print(f"crucible-worker: engine {requested} does not work ({detail}); using {engine}", file=sys.stderr)
    return engine


def _evaluate(fleet: Fleet, engine: str, task: Task, settings: Settings) -> Result:
    limits = settings.limits().for_task(task, settings.timeout_max)
    started = dt.datetime.now(dt.UTC)
    try:
        run = fleet.run(engine, task, limits, threading.Event())
    except TaskError as error:
        code = ExitCode.USAGE if error.reason in {Reason.LANGUAGE_UNKNOWN, Reason.INVALID_TASK} else ExitCode.NO_ENGINE
        raise ExitError(code, f"{task.eval_id}: {error.reason}: {error}.") from None
    finished = dt.datetime.now(dt.UTC)
    return Result.of(
        task, run, engine=engine, limits=limits, started=started, finished=finished, worker_id=settings.worker_id
    )


def _show(result: Result, *, as_json: bool, alone: bool) -> bool:
    """Print one result as asked. Returns whether it completed."""
    verdict = f"{result.status} ({result.reason}) in {result.duration_ms / 1000:.2f} s on {result.engine}"
    if as_json:
        print(json.dumps(result.document()), flush=True)
    elif alone:
        sys.stdout.write(result.stdout)
        sys.stdout.flush()
        sys.stderr.write(result.stderr)
        print(f"crucible-worker: {verdict}{f': {result.error}' if result.error else ''}", file=sys.stderr)
    else:
        print(f"{result.id}: {verdict}", flush=True)
    return result.status == Status.COMPLETED
