"""`cleanup`: removes the sandboxes that a worker of this id has left behind."""

import argparse
import datetime as dt
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from crucible_worker import statefile
from crucible_worker.cli import options
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.leftovers import Known, leftovers, overdue
from crucible_worker.engines.reconciler import WORKER_LABEL, remove
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.journal import Journal
from crucible_worker.settings import Settings

EXAMPLE = """Only sandboxes with the label crucible.worker of this worker id (HOSTNAME): those of lives that have
ended by the journal in the state directory, and those that are long past their deadline. What a running worker still
needs, or the next one is going to take over, stays.

Examples:
  crucible-worker.pyz cleanup --dry-run
  HOSTNAME=worker-7 crucible-worker.pyz cleanup

Exit codes: 0 nothing is left behind, 1 one would not go, 64 usage, 69 the Docker Engine does not answer."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Whose sandboxes, and whether to touch them."""
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    options.add_settings(parser, frozenset({"docker_host", "state_dir", "worker_id"}))


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it. Raises ExitError (64 or 69)."""
    settings = options.read_settings(args, environ).settings
    try:
        with closing(Daemon(settings.docker_host)) as daemon:
            return _clean(daemon, settings, dry=args.dry_run)
    except (DaemonGoneError, TaskError) as error:
        raise ExitError(ExitCode.NO_ENGINE, f"{error}.") from error


def _clean(daemon: Daemon, settings: Settings, *, dry: bool) -> int:
    found = daemon.containers({WORKER_LABEL: settings.worker_id})
    known = _known(settings)
    late = [container for container in overdue(found, dt.datetime.now(dt.UTC)) if container not in known.spared]
    doomed = list(dict.fromkeys(leftovers(found, known) + late))
    if dry:
        for container in doomed:
            print(f"would remove {container}")
        return ExitCode.OK
    sweep = remove(daemon, doomed)
    for container in sweep.removed:
        print(f"removed {container}")
    for container in sweep.stubborn:
        print(f"{container} will not go; look at it by hand")
    return ExitCode.FAILED if sweep.stubborn else ExitCode.OK


def _known(settings: Settings) -> Known:
    """What the journal knows. A life is over for certain only where nobody holds the state directory."""
    if settings.state_dir == statefile.MEMORY or not (Path(settings.state_dir) / "journal.db").is_file():
        return Known()
    try:
        lock = statefile.lock_directory(settings.state_dir)
    except (ExitError, OSError):
        lock = None
    try:
        journal = Journal(statefile.visit(settings.state_dir))
        try:
            spared = {str(claim.run["container"]) for claim in journal.claims() if claim.run}
            return Known(ended=journal.boots() if lock is not None else (), spared=spared)
        finally:
            journal.close()
    finally:
        if lock is not None:
            os.close(lock)
