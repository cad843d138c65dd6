"""`journal`: what the worker has still to say, and what the queue would not hear. Works beside a running worker."""

import argparse
import json
import time
from collections.abc import Mapping

from crucible_worker import statefile
from crucible_worker.cli import options
from crucible_worker.errors import ExitCode, ExitError, JournalError
from crucible_worker.journal import DEAD, EVENTS, RESULTS, Entry, Journal

EXAMPLE = """Entries are results that wait for the queue (results), events that wait for the bus (events), and results
that the queue refused for good (dead). A running worker notices a change within seconds.

Examples:
  crucible-worker.pyz journal list
  crucible-worker.pyz journal show 17
  crucible-worker.pyz journal retry 17        have a dead letter said again; without IDs, all of them
  crucible-worker.pyz journal drop 17         forget an entry for good

Exit codes: 0 done, 64 usage, no journal, or no such entry."""

_FIELDS = ("id", "lane", "kind", "eval_id", "age_seconds", "bytes", "answer")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do with which entries."""
    parser.add_argument("action", choices=("list", "show", "retry", "drop"), help="what to do")
    parser.add_argument("ids", nargs="*", default=[], type=int, metavar="ID", help="entries, as listed")
    parser.add_argument("--json", action="store_true", help="list: print one JSON array")
    options.add_settings(parser, frozenset({"state_dir"}))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it. Raises ExitError (64)."""
    settings = options.read_settings(args, environ).settings
    journal = Journal(statefile.visit(settings.state_dir))
    try:
        if args.action in {"show", "drop"} and not args.ids:
            raise ExitError(ExitCode.USAGE, f"{args.action} needs the ID of an entry; 'journal list' shows them.")
        {"list": _list, "show": _show, "retry": _retry, "drop": _drop}[args.action](journal, args)
    except JournalError as error:
        raise ExitError(ExitCode.USAGE, f"the journal in {settings.state_dir} cannot be used: {error}.") from error
    finally:
        journal.close()
    return ExitCode.OK


def _list(journal: Journal, args: argparse.Namespace) -> None:
    rows = [_row(entry) for lane in (RESULTS, EVENTS, DEAD) for entry in _entries(journal, lane)]
    running = [{"eval_id": c.eval_id, "claimed_at": c.at, "started": c.run is not None} for c in journal.claims()]
    if args.json:
        print(json.dumps({"claims": running, "entries": rows}))
        return
    for claim in running:
        print(f"claim    {claim['eval_id']!r} {'runs' if claim['started'] else 'has not started'}")
    for row in rows:
        answer = f" {row['answer']}" if row["answer"] else ""
        print(
            f"{row['id']:<8} {row['lane']:<8} {row['kind']:<9} {row['eval_id']!r} {row['age_seconds']} s, "
            f"{row['bytes']} bytes{answer}"
        )
    if not running and not rows:
        print("the journal is empty")


def _entries(journal: Journal, lane: str) -> list[Entry]:
    return [entry for number in journal.pending(lane) if (entry := journal.entry(number)) is not None]


def _row(entry: Entry) -> dict[str, object]:
    age, size = round(time.time() - entry.at), len(entry.document)
    return dict(zip(_FIELDS, (entry.id, entry.lane, entry.kind, entry.eval_id, age, size, entry.answer), strict=True))


def _show(journal: Journal, args: argparse.Namespace) -> None:
    for number in args.ids:
        entry = _find(journal, number)
        print(json.dumps({**_row(entry), "body": entry.body}, indent=2))


def _retry(journal: Journal, args: argparse.Namespace) -> None:
    for number in args.ids or journal.pending(DEAD):
        if not journal.revive(number):
            raise ExitError(ExitCode.USAGE, f"{number} is no dead letter; 'journal list' shows them.")
        print(f"{number} will be said again")


def _drop(journal: Journal, args: argparse.Namespace) -> None:
    for number in args.ids:
        journal.done(_find(journal, number).id)
        print(f"{number} is forgotten")


def _find(journal: Journal, number: int) -> Entry:
    entry = journal.entry(number)
    if entry is None:
        raise ExitError(ExitCode.USAGE, f"there is no entry {number}; 'journal list' shows them.")
    return entry
