"""A real worker in a process of its own, watched through its log lines and its health endpoint."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path

from engine_under_test import DOCKER_HOST, PLAIN_RUNTIME
from scripted_server import PATIENCE

import crucible_worker
from crucible_worker.engines.daemon import Daemon

ROOT = Path(crucible_worker.__file__).parents[1]


def clean_environment() -> dict[str, str]:
    """This environment without anything that the worker would read."""
    names = ("API_", "CRUCIBLE_", "QUEUE_", "EVENT_", "HOSTNAME", "DOCKER_HOST")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(names) and not k.lower().endswith("_proxy")}
    return kept | {"PYTHONPATH": str(ROOT)}


class WorkerProcess:
    """`run` with the given environment. Lines of the log are events to wait for."""

    def __init__(
        self,
        environment: dict[str, str],
        program: Sequence[str] = ("-m", "crucible_worker"),
        python: Sequence[str] = (sys.executable,),
    ) -> None:
        """`program` is what Python runs: the package of this tree, or a built file; `python` starts that Python."""
        self.lines: list[dict] = []
        self.noise: list[str] = []  # what was no log line
        self.raw: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self.process = subprocess.Popen(
            [*python, *program, "run"],
            env=clean_environment() | environment,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._changed:
                self.raw.append(line)
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.noise.append(line)
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def events(self, name: str, **fields: object) -> list[dict]:
        """The log lines of an event so far, with these fields."""
        return [x for x in self.lines if x.get("event") == name and all(x.get(k) == v for k, v in fields.items())]

    def event(self, name: str, *, count: int = 1, **fields: object) -> dict:
        """The `count`th log line of an event, once it is written."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.events(name, **fields)) >= count or self._closed, PATIENCE)
            found = self.events(name, **fields)
        if len(found) < count:
            raise TimeoutError(f"{name} {fields} was not logged {count} times; last lines: {''.join(self.raw[-15:])}")
        return found[count - 1]

    @property
    def port(self) -> int:
        return self.event("worker_started")["health_port"]

    def get(self, path: str) -> tuple[int, dict]:
        """(status, document) of an endpoint."""
        status, body = self.fetch(path)
        return status, json.loads(body)

    def fetch(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> "WorkerProcess":
        """This worker, once an engine works."""
        self.event("engine_available")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        """The exit code, once there is one. All that was logged has been read by then."""
        code = self.process.wait(PATIENCE)
        self._reader.join()
        self.process.stderr.close()
        assert not self.noise, f"not a log line: {''.join(self.noise)}"
        return code

    def stop(self) -> int:
        """TERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.exit_code()

    def discard(self) -> None:
        """End it whatever it does, at the end of a test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


def environment(queue_url: str, state_dir: object, worker_id: str) -> dict[str, str]:
    """A worker that polls often and keeps to itself."""
    return {
        "QUEUE_SERVICE_URL": queue_url,
        "EVENT_BUS_URL": "none",
        "HOSTNAME": worker_id,
        "CRUCIBLE_STATE_DIR": str(state_dir),
        "CRUCIBLE_HEALTH_ADDRESS": "127.0.0.1:0",
        "DOCKER_HOST": DOCKER_HOST,
        "CRUCIBLE_ENGINES": f"docker={PLAIN_RUNTIME}",
        "CRUCIBLE_POLL_WAIT": "0",
        "CRUCIBLE_WARM": "0",
        "CRUCIBLE_POLL_INTERVAL": "0.05",
        "CRUCIBLE_POLL_BACKOFF": "0.1",
        "CRUCIBLE_POLL_BACKOFF_MAX": "0.5",
    }


class Starter:
    """Starts workers on one state directory, under one id; ends them, and their sandboxes, with the test."""

    def __init__(self, queue_url: str, state_dir: object, program: Sequence[str] = ("-m", "crucible_worker")) -> None:
        self._program = program
        self.worker_id = f"test-{uuid.uuid4().hex[:12]}"
        self.state_dir = state_dir
        self._queue_url = queue_url
        self._running: list[WorkerProcess] = []

    def __call__(self, **settings: str) -> WorkerProcess:
        given = environment(self._queue_url, self.state_dir, self.worker_id) | settings
        started = WorkerProcess(given, self._program)
        self._running.append(started)
        return started

    def alive(self) -> bool:
        """Whether any of them still runs."""
        return any(worker.process.poll() is None for worker in self._running)

    def close(self) -> None:
        for worker in self._running:
            worker.discard()


def sandboxes(daemon: Daemon, worker_id: str) -> list[str]:
    return [c["Id"] for c in daemon.containers({"crucible.worker": worker_id})]
