"""`queue`: the embedded queue, until it is told to stop."""

import argparse
import signal
import threading
from collections.abc import Mapping

from crucible_worker import readers, settings
from crucible_worker.cli import options
from crucible_worker.embedded import store
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.errors import ExitCode
from crucible_worker.observe import logs

EXAMPLE = """Tasks and results are in one SQLite file, which survives a crash at any moment. With API_KEY or
API_KEY_FILE set, calls need that key. GET /openapi.json describes every call.

Examples:
  crucible-worker.pyz queue
  API_KEY_FILE=/run/secrets/key crucible-worker.pyz queue --address 0.0.0.0:8081 --database /var/lib/queue.db

Exit codes: 0 stopped by TERM or INT, 64 usage, or the address or the database cannot be had."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, what to keep."""
    parser.add_argument(
        "--address",
        type=options.flag(readers.address),
        default="127.0.0.1:8081",
        metavar="ADDRESS:PORT",
        help="where to listen; port 0 takes a free one (%(default)s)",
    )
    parser.add_argument(
        "--database",
        default="crucible-queue.db",
        metavar="FILE",
        help="where tasks are kept; :memory: keeps nothing (%(default)s)",
    )
    parser.add_argument(
        "--lease-seconds",
        type=options.flag(readers.number),
        default=store.DEFAULT_LEASE_SECONDS,
        metavar="S",
        help="a worker that renews its lease and then is silent for so long loses its task (%(default)g)",
    )
    parser.add_argument(
        "--keep",
        type=options.flag(readers.count_or_none),
        default=store.DEFAULT_KEEP,
        metavar="N",
        help="how many settled tasks are kept (%(default)s)",
    )
    parser.add_argument(
        "--keep-hours",
        type=options.flag(readers.number),
        default=store.DEFAULT_KEEP_SECONDS / 3600,
        metavar="H",
        help="for how long settled tasks are kept (%(default)g)",
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="file with the key that calls need")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until TERM or INT."""
    flags = {"api_key_file": args.api_key_file} if args.api_key_file else {}
    loaded = settings.load(flags, environ, {}).settings
    api_key = loaded.api_key.reveal()
    logs.configure(loaded.worker_id, loaded.log_format, loaded.log_level, secrets=lambda: [api_key])
    log = logs.get_logger()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    queue = EmbeddedQueue(
        args.database,
        args.address,
        api_key=api_key,
        lease_seconds=args.lease_seconds,
        keep=args.keep,
        keep_seconds=args.keep_hours * 3600,
        log=log.error,
    )
    with queue:
        log.info("queue_ready", url=queue.url, port=queue.port, database=args.database, key_required=bool(api_key))
        stop.wait()
    log.info("queue_stopped")
    return ExitCode.OK
