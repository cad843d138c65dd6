"""`exec`: files in the same sandbox that a worker uses, without a queue."""

import argparse
import base64
import datetime as dt
import json
import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import TextIO

from crucible_worker import readers
from crucible_worker.cli import composition, options, parallel
from crucible_worker.cli.files import STDIN, expand, read_code, suffix_of
from crucible_worker.cli.progress import Progress, summary
from crucible_worker.engines.fleet import Fleet
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.model import (
    DEFAULT_ENGINE,
    DEFAULT_LANGUAGE,
    DEFAULT_TIMEOUT,
    Reason,
    Result,
    Status,
    Task,
    as_bytes,
)
from crucible_worker.settings import Settings

EXAMPLE = """A single file's output appears as it is, its verdict on stderr. Several files, or --json, give a line each,
as they end. A folder stands for all files of the language in it.

Examples:
  crucible-worker.pyz exec solution.py
  crucible-worker.pyz exec --jobs 4 --json solutions/ 'more/*.py'
  echo 'print(6 * 7)' | crucible-worker.pyz exec --engine gvisor --json -
  crucible-worker.pyz exec --reflect-exit-status --stdin input.txt solution.py

Exit codes: 0 all completed, 1 one did not, 64 usage, 69 no engine works, 130 Ctrl-C. With --reflect-exit-status, that
of the program: 128 and the signal's number where one ended it, 124 for a timeout, 1 where it has none."""

_TIMEOUT_STATUS = 124  # as timeout(1) has it
# For a sandbox to be gone after Ctrl-C.
_END_SECONDS = 30.0
_SETTINGS = frozenset(
    {
        "docker_host", "engines", "engine_fallback", "languages", "pull", "images_allowed",
        "memory", "cpus", "processes", "open_files",
        "file_size", "tmp_size", "output", "output_limit", "artifacts", "timeout_max",
    }
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, and how."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="code to run: files, folders, patterns; - is stdin")
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="docker or gvisor (default: %(default)s)")
    parser.add_argument("--language", default=DEFAULT_LANGUAGE, help="what the files are written in (%(default)s)")
    parser.add_argument(
        "--timeout",
        type=options.flag(readers.number),
        default=DEFAULT_TIMEOUT,
        metavar="S",
        help="seconds (%(default)g)",
    )
    parser.add_argument("--arg", action="append", default=[], metavar="A", help="an argument for it; may be repeated")
    parser.add_argument("--stdin", metavar="FILE", help="what the code reads from its standard input; - is this one's")
    parser.add_argument(
        "--jobs", type=options.flag(readers.count), default=1, metavar="N", help="how many to run at once (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one RESULT object a line")
    parser.add_argument("--reflect-exit-status", action="store_true", help="exit as the program did; for one file")
    options.add_settings(parser, _SETTINGS)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run every file. Raises ExitError (64 or 69)."""
    settings = options.read_settings(args, environ).settings
    tasks = _tasks(args, settings)
    fleet = composition.fleet(settings)
    cancel = threading.Event()
    alone = len(tasks) == 1
    progress = Progress(len(tasks), shown=not alone)
    ended: list[Result] = []

    def done(_: int, result: Result) -> None:
        ended.append(result)
        progress.count(completed=result.status == Status.COMPLETED)
        progress.clear()
        _show(result, as_json=args.json, alone=alone)

    try:
        fleet.probe_all()
        engine = _engine(fleet, args.engine)
        parallel.run_all(
            [partial(_evaluate, fleet, engine, task, settings, cancel) for task in tasks], args.jobs,
            done=done, tick=progress.draw, stop=cancel.set, grace=_END_SECONDS,
        )  # fmt: skip
    finally:
        progress.clear()
        fleet.close(_END_SECONDS)
    if not alone and not args.json:
        print(f"crucible-worker: {summary([result.status for result in ended], progress.seconds)}", file=sys.stderr)
    if args.reflect_exit_status:
        return _status_of(ended[0])
    return ExitCode.FAILED if progress.failed else ExitCode.OK


def _tasks(args: argparse.Namespace, settings: Settings) -> list[Task]:
    names = expand(args.files, suffix_of(settings.languages, args.language))
    if args.reflect_exit_status and len(names) != 1:
        raise ExitError(ExitCode.USAGE, f"--reflect-exit-status takes one file, and these are {len(names)}.")
    if args.stdin == STDIN and STDIN in names:
        raise ExitError(ExitCode.USAGE, "standard input can be the code or what the code reads, not both.")
    stdin = "" if args.stdin is None else read_code(args.stdin)
    given = tuple(args.arg)
    return [
        Task(name, read_code(name), args.language, args.engine, args.timeout, stdin=stdin, args=given) for name in names
    ]


def _status_of(result: Result) -> int:
    if result.exit_code is not None:
        return result.exit_code
    if result.signal is not None:
        return 128 + result.signal
    return _TIMEOUT_STATUS if result.status == Status.TIMEOUT else ExitCode.FAILED


def _engine(fleet: Fleet, requested: str) -> str:
    try:
        engine = fleet.choose(requested)
    except TaskError as error:
        raise ExitError(ExitCode.NO_ENGINE, f"{error}.") from None
    if engine != requested:
        detail = fleet.states()[requested].detail
        print(f"crucible-worker: engine {requested} does not work ({detail}); using {engine}", file=sys.stderr)
    return engine


def _evaluate(fleet: Fleet, engine: str, task: Task, settings: Settings, cancel: threading.Event) -> Result:
    limits = settings.limits().for_task(task, settings.timeout_max)
    started = dt.datetime.now(dt.UTC)
    try:
        run = fleet.run(engine, task, limits, cancel)
    except TaskError as error:
        code = ExitCode.USAGE if error.reason in {Reason.LANGUAGE_UNKNOWN, Reason.INVALID_TASK} else ExitCode.NO_ENGINE
        raise ExitError(code, f"{task.eval_id}: {error.reason}: {error}.") from None
    finished = dt.datetime.now(dt.UTC)
    return Result.of(
        task, run, engine=engine, limits=limits, started=started, finished=finished, worker_id=settings.worker_id
    )


def _show(result: Result, *, as_json: bool, alone: bool) -> None:
    verdict = f"{result.status} ({result.reason}) in {result.duration_ms / 1000:.2f} s on {result.engine}"
    if as_json:
        print(json.dumps(result.document()), flush=True)
    elif alone:
        _write(sys.stdout, result.stdout, result.encoding)
        _write(sys.stderr, result.stderr, result.encoding)
        print(f"crucible-worker: {verdict}{f': {result.error}' if result.error else ''}", file=sys.stderr)
    else:
        print(f"{result.id}: {verdict}", flush=True)


def _write(stream: TextIO, text: str, encoding: str) -> None:
    """What a program has printed, byte by byte."""
    data = base64.b64decode(text) if encoding == "base64" else as_bytes(text)
    stream.flush()
    stream.buffer.write(data)
    stream.flush()
