"""`submit`: files into the queue, verdicts out of it."""

import argparse
import json
import sys
import time
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from crucible_worker import readers, settings
from crucible_worker.cli import options, parallel
from crucible_worker.cli.files import STDIN, expand, read_code, suffix_of
from crucible_worker.cli.progress import Progress, summary
from crucible_worker.errors import ExitCode, ExitError, RejectedError, RetryError
from crucible_worker.model import DEFAULT_LANGUAGE
from crucible_worker.transport import HttpTransport, Response, tls_context

EXAMPLE = """Without --wait, the id of each task is printed. With it, one line a task once it is settled, in the
order of the files unless --jobs is more than 1. A folder stands for all files of the language in it. The queue is
QUEUE_SERVICE_URL, the key API_KEY or API_KEY_FILE.

Examples:
  crucible-worker.pyz submit solution.py --wait
  crucible-worker.pyz submit solutions/ 'more/*.py' --wait --jobs 8 --json
  echo 'print(6 * 7)' | crucible-worker.pyz submit - --wait --json --queue-url http://127.0.0.1:8081

Exit codes: 0 submitted, or all completed; 1 one did not complete; 64 usage, or the queue refuses a task;
75 the queue cannot be reached; 77 it refuses the key; 130 Ctrl-C: what is submitted stays in the queue."""

_WAIT_SECONDS = 25
_PAUSE_SECONDS = 1.0
# How long a queue may be away before waiting for it is given up; its tasks go on without us.
_PATIENCE_SECONDS = 120.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to submit, and how."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="code to run: files, folders, patterns; - is stdin")
    parser.add_argument("--wait", action="store_true", help="wait for the verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--engine", help="docker, gvisor, or another one that a worker has")
    parser.add_argument("--language", help="what the files are written in")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds that each may run")
    parser.add_argument("--arg", action="append", dest="args", metavar="A", help="an argument for it; may be repeated")
    parser.add_argument("--stdin", metavar="FILE", help="what the code reads from its standard input; - is this one's")
    parser.add_argument(
        "--jobs", type=options.flag(readers.count), default=1, metavar="N", help="requests to the queue at once (1)"
    )
    parser.add_argument("--priority", type=int, metavar="N", help="higher ones run first (0)")
    parser.add_argument("--queue-url", metavar="URL", help="the queue, instead of QUEUE_SERVICE_URL")
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the queue's key")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Submit every file, and wait if asked to."""
    flags = {name: getattr(args, name) for name in ("queue_url", "api_key_file") if getattr(args, name)}
    loaded = settings.load(flags, environ, {}).settings
    queue = _Queue(
        loaded.queue_url,
        HttpTransport(
            loaded.api_key.reveal, lambda: tls_context(loaded.ca_file, loaded.client_cert, loaded.client_key)
        ),
    )
    names = expand(args.files, suffix_of(loaded.languages, args.language or DEFAULT_LANGUAGE))
    tasks = _documents(args, names)
    _submit(queue, tasks, args)
    return _await(queue, tasks, names, args) if args.wait else ExitCode.OK


def _documents(args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """The tasks as the queue takes them."""
    if args.stdin == STDIN and STDIN in names:
        raise ExitError(ExitCode.USAGE, "standard input can be the code or what the code reads, not both.")
    given = {name: getattr(args, name) for name in ("engine", "language", "timeout", "priority", "args")}
    given["stdin"] = None if args.stdin is None else read_code(args.stdin)
    wanted = {name: value for name, value in given.items() if value is not None}
    # Ids are made here, so that a submission whose answer got lost is the same one when it is repeated.
    return [{"eval_id": str(uuid.uuid4()), "code": read_code(name), **wanted} for name in names]


def _submit(queue: "_Queue", tasks: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    progress = Progress(len(tasks), shown=len(tasks) > 1)

    def done(number: int, _: None) -> None:
        progress.count(completed=True)
        if not args.wait:
            progress.clear()
            eval_id = tasks[number]["eval_id"]
            print(json.dumps({"id": eval_id, "status": "queued"}) if args.json else eval_id, flush=True)

    try:
        parallel.run_all([partial(queue.submit, task) for task in tasks], args.jobs, done=done, tick=progress.draw)
    finally:
        progress.clear()


def _await(queue: "_Queue", tasks: Sequence[Mapping[str, Any]], names: Sequence[str], args: argparse.Namespace) -> int:
    progress = Progress(len(tasks), shown=len(tasks) > 1)
    statuses: list[str] = []

    def done(number: int, result: Mapping[str, Any]) -> None:
        statuses.append(str(result.get("status")))
        progress.count(completed=result.get("status") == "completed")
        progress.clear()
        print(json.dumps(result) if args.json else _line(result, names[number]), flush=True)

    calls = [partial(queue.result, task["eval_id"]) for task in tasks]
    try:
        parallel.run_all(calls, args.jobs, done=done, tick=progress.draw)
    finally:
        progress.clear()
    if len(tasks) > 1 and not args.json:
        print(f"crucible-worker: {summary(statuses, progress.seconds)}", file=sys.stderr)
    return ExitCode.FAILED if progress.failed else ExitCode.OK


def _line(result: Mapping[str, Any], file: str) -> str:
    """One settled task for people: verdict, reason, duration, id, file."""
    duration = result.get("duration_ms")
    shown = f"{duration / 1000:.2f} s" if isinstance(duration, int | float) else "-"
    reason = result.get("reason") or result.get("error") or "-"
    fields = [f"{result.get('status', '-'):<9}", f"{reason:<14}", f"{shown:>8}", str(result.get("id", "-")), file]
    # What a worker reports may hold control characters, which a terminal would obey.
    return "".join(character if character.isprintable() else " " for character in "  ".join(fields))


class _Queue:
    """A Queue Service, as a submitter sees it."""

    def __init__(self, url: str, transport: HttpTransport) -> None:
        self._url = url
        self._transport = transport

    def submit(self, document: Mapping[str, Any]) -> None:
        """Put one task into the queue. Raises ExitError where the queue refuses it or cannot be reached."""
        try:
            self._call("POST", "/tasks", document).check()
        except RetryError as error:
            raise self._unreachable(error) from None
        except RejectedError as error:
            raise ExitError(ExitCode.USAGE, f"the queue refuses the task: it {error}.") from None

    def result(self, eval_id: str) -> dict[str, Any]:
        """Wait for a task's RESULT; a document with `id`, `status` and `error` where there is no verdict.

        An outage in between is waited out. Raises ExitError where it lasts, or the task is not known any more.
        """
        path = f"/tasks/{urllib.parse.quote(eval_id, safe='')}"
        reached = time.monotonic()
        while True:
            try:
                result = self._ask(eval_id, path)
                reached = time.monotonic()
            except RetryError as error:
                if time.monotonic() - reached > _PATIENCE_SECONDS:
                    raise self._unreachable(error) from None
                result = None
                time.sleep(_PAUSE_SECONDS)
            except RejectedError as error:
                raise ExitError(ExitCode.FAILED, f"the queue does not tell about task {eval_id}: it {error}.") from None
            if result is not None:
                return result

    def _ask(self, eval_id: str, path: str) -> dict[str, Any] | None:
        """One question for the result; None where it is not there yet. May wait."""
        answer = self._call("GET", f"{path}/result", wait=_WAIT_SECONDS)
        if answer.status == 200 and isinstance(document := answer.json(), dict):
            return {"id": eval_id, "status": "completed", **document}
        if answer.status == 202:
            if "preference-applied" not in answer.headers:
                time.sleep(_PAUSE_SECONDS)
            return None
        if answer.status != 404:
            answer.check()
        # A queue without results still tells where a task stands.
        answer = self._call("GET", path)
        if answer.status == 404:
            raise ExitError(ExitCode.FAILED, f"the queue does not know task {eval_id} any more; submit it again.")
        document = answer.check().json()
        if isinstance(document, dict) and document.get("status") in {"completed", "failed", "timeout", "error"}:
            return {"id": eval_id, **document}
        time.sleep(_PAUSE_SECONDS)
        return None

    def _call(self, method: str, path: str, document: object = None, wait: int = 0) -> Response:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        answer = self._transport.request(method, self._url + path, json=document, headers=headers, deadline=30.0 + wait)
        if answer.status in {401, 403}:
            raise ExitError(ExitCode.KEY_REFUSED, f"the queue at {self._url} refuses the key; set API_KEY_FILE.")
        return answer

    def _unreachable(self, error: RetryError) -> ExitError:
        return ExitError(
            ExitCode.UNDELIVERED,
            f"the queue at {self._url} {error}; is it running, and is QUEUE_SERVICE_URL right?",
        )
