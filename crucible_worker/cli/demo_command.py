"""`demo`: a queue, a worker and a handful of evaluations, all real, and nothing left behind."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_worker.cli import options
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.errors import ExitCode, ExitError, TaskError
from crucible_worker.settings import Settings
from crucible_worker.transport import HttpTransport

EXAMPLE = """Needs a running Docker Engine; makes the sandbox image where it is missing, and takes it away again.

Example:
  crucible-worker.pyz demo

Exit codes: 0 every verdict is as it should be, 1 one is not, 64 usage, 69 no Docker Engine."""

PATIENCE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    code: str
    timeout: float
    reason: str
    shows: str


CASES = (
    _Case("hello", 'print("Hello from the sandbox!")', 10, "exited", "stdout"),
    _Case("an exception", "def divide(a, b):\n    return a / b\n\nprint(divide(1, 0))", 10, "exited_nonzero", "stderr"),
    _Case("an endless loop", 'print("before the loop")\nwhile True:\n    pass', 2, "timeout", "error"),
    _Case("a memory hog", "hoard = []\nwhile True:\n    hoard.append(bytearray(10**7))", 20, "out_of_memory", "error"),
    _Case(
        "a call home",
        'import socket\nsocket.create_connection(("192.0.2.1", 80), timeout=3)',
        20,
        "exited_nonzero",
        "stderr",
    ),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the demo may be told."""
    parser.add_argument("--keep-image", action="store_true", help="leave the sandbox image in place")
    options.add_settings(parser, {"docker_host", "engines", "languages"})


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show the whole road of a task, on every engine that is there."""
    settings = options.read_settings(args, environ).settings
    with _image(settings, keep=args.keep_image), tempfile.TemporaryDirectory(prefix="crucible-demo-") as folder:
        engines = _engines(settings)
        with EmbeddedQueue(":memory:", "127.0.0.1:0") as queue:
            url = f"http://127.0.0.1:{queue.port}"
            _say(f"queue     {url} (embedded, in memory)")
            with _worker(url, Path(folder), args, environ):
                wrong = _evaluate(url, engines)
        left = Daemon(settings.docker_host).containers({"crucible.worker": _worker_id()})
        _say(f"\nThe worker has drained and stopped; sandboxes left behind: {len(left)}.")
    if wrong:
        _say(f"Not as they should be: {', '.join(wrong)}.")
    return ExitCode.FAILED if wrong or left else ExitCode.OK


def _say(line: str) -> None:
    print(line, flush=True)


def _worker_id() -> str:
    return f"demo-{os.getpid()}"


@contextlib.contextmanager
def _image(settings: Settings, *, keep: bool) -> Iterator[None]:
    """The sandbox image, made if it is missing; what was made is removed again."""
    daemon, name = Daemon(settings.docker_host), settings.languages["python"].image
    try:
        version, found = daemon.version()["Version"], daemon.image(name)
    except (DaemonGoneError, TaskError) as error:
        raise ExitError(ExitCode.NO_ENGINE, f"{error}. Start it, or set DOCKER_HOST.") from None
    _say(f"engine    Docker {version} at {settings.docker_host}")
    if found is None:
        began = time.monotonic()
        _call("image", "build", "--tag", name, "--docker-host", settings.docker_host)
        _say(f"image     {name}, made from this host's Python in {time.monotonic() - began:.0f} s, without a registry")
    try:
        yield
    finally:
        if found is None and not keep:
            daemon.remove_image(name)


def _engines(settings: Settings) -> list[str]:
    known = Daemon(settings.docker_host).info().get("Runtimes") or {}
    for name, runtime in settings.engines.items():
        if runtime not in known:
            _say(f"          the daemon has no runtime {runtime}: nothing is shown on {name}")
    return [name for name, runtime in settings.engines.items() if runtime in known]


def _call(*arguments: str) -> None:
    done = subprocess.run([*_ourselves(), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ExitError(done.returncode, done.stderr.strip().removeprefix("crucible-worker: "))


def _ourselves() -> list[str]:
    """The command line that starts this very program again."""
    own = [sys.argv[0]] if sys.argv[0].endswith(".pyz") else ["-m", "crucible_worker"]
    return [sys.executable, *own]


@contextlib.contextmanager
def _worker(url: str, folder: Path, args: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[None]:
    """A worker of its own process, stopped with TERM as an operator would."""
    log = folder / "worker.log"
    own = {
        "QUEUE_SERVICE_URL": url,
        "EVENT_BUS_URL": "none",
        "HOSTNAME": _worker_id(),
        "CRUCIBLE_STATE_DIR": str(folder / "state"),
        "CRUCIBLE_HEALTH_ADDRESS": "127.0.0.1:0",
        # A poll is read to its end before the worker stops; nobody wants to watch that.
        "CRUCIBLE_POLL_WAIT": "1",
        # What is shown on an engine has run on it.
        "CRUCIBLE_ENGINE_FALLBACK": "never",
    }
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name in ("docker_host", "engines", "languages")
        if (value := getattr(args, f"setting_{name}"))
    ]
    with log.open("wb") as out:
        worker = subprocess.Popen([*_ourselves(), "run", *flags], env={**environ, **own}, stderr=out)  # noqa: S603
        _say(f"worker    process {worker.pid}, pulling from the queue\n")
        try:
            yield
            worker.send_signal(signal.SIGTERM)
            worker.wait(PATIENCE_SECONDS)
        except ExitError as error:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise ExitError(error.code, "\n".join([str(error), *last])) from None
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def _evaluate(url: str, engines: list[str]) -> list[str]:
    """Submit every case on every engine and print its verdict. Returns the names of those not as expected."""
    transport = HttpTransport()
    planned = [(engine, number, case) for engine in engines for number, case in enumerate(CASES)]
    for engine, number, case in planned:
        document = {"eval_id": f"{engine}-{number}", "code": case.code, "engine": engine, "timeout": case.timeout}
        transport.request("POST", f"{url}/tasks", json=document).check()
    _say(f"{'ENGINE':<8} {'EVALUATION':<16} {'STATUS':<10} {'REASON':<15} {'TIME':>7}  WHAT IT SAID")
    wrong = []
    for engine, number, case in planned:
        result = _result(transport, f"{url}/tasks/{engine}-{number}/result")
        if result.get("reason") != case.reason:
            wrong.append(f"{case.name} on {engine}")
        _say(_row(engine, case, result))
    return wrong


def _result(transport: HttpTransport, url: str) -> Mapping[str, Any]:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        response = transport.request("GET", url, headers={"Prefer": "wait=10"}, deadline=30)
        if response.status == 200:
            return dict(response.json())
    raise ExitError(ExitCode.FAILED, f"no verdict within {PATIENCE_SECONDS:.0f} seconds; the worker's last words:")


def _row(engine: str, case: _Case, result: Mapping[str, Any]) -> str:
    words = str(result.get(case.shows) or result.get("error") or "").strip().splitlines() or [""]
    seconds = f"{(result.get('duration_ms') or 0) / 1000:.2f} s"
    status, reason = result.get("status", "failed"), result.get("reason", "-")
    return f"{engine:<8} {case.name:<16} {status:<10} {reason:<15} {seconds:>7}  {words[-1]}"
