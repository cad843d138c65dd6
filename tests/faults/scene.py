"""One worker, one queue, and the proxies between; and what must be true when the fault is over."""

import json
import os
import shutil
import signal
import socket
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path

from fault_proxy import DaemonProxy, QueueProxy
from precondition import unavailable
from scripted_server import PATIENCE
from worker_process import ROOT, Starter, WorkerProcess, sandboxes

from crucible_worker import statefile
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.engines.daemon import Daemon
from crucible_worker.journal import Journal

DOCKER_SOCKET = "/var/run/docker.sock"
LEASE_SECONDS = 3.0
# A task whose first words, last words, error stream and exit code all have to arrive.
CODE = (
    "import sys, time\nprint('hello', flush=True)\ntime.sleep(0.7)\nprint('bye')\n"
    "print('oops', file=sys.stderr)\nraise SystemExit(3)"
)
SAID = ("hello\nbye\n", "oops\n", 3)


def program() -> Sequence[str]:
    """The built file, as an operator runs it. Without one, the package of this tree."""
    built = ROOT / "dist" / "crucible-worker.pyz"
    if built.exists():
        return ("-I", str(built))
    if os.environ.get("CI"):
        unavailable("dist/crucible-worker.pyz is not built")
    return ("-m", "crucible_worker")


class Scene:
    """The embedded queue on disk, and a worker with an id and a state directory of its own."""

    def __init__(self, docker_socket: str = DOCKER_SOCKET, plain: int | None = None) -> None:
        """`plain` is the port of another queue, to be used instead of the embedded one."""
        # Short, for the sockets in it.
        self.root = Path(tempfile.mkdtemp(prefix="cwf-"))
        self.state = self.root / "state"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.queue: EmbeddedQueue | None = None
        if plain is None:
            self.open_queue()
        self.proxy = QueueProxy(self.port if plain is None else plain)
        self.docker_proxy = DaemonProxy(str(self.root / "docker.sock"), docker_socket)
        self.starter = Starter(self.proxy.url, self.state, program())
        self.daemon = Daemon(f"unix://{docker_socket}")

    def open_queue(self) -> None:
        self.queue = EmbeddedQueue(str(self.root / "queue.db"), f"127.0.0.1:{self.port}", lease_seconds=LEASE_SECONDS)
        self.queue.start()

    def close_queue(self) -> None:
        self.queue.stop()
        self.queue = None

    def worker(self, **settings: str) -> WorkerProcess:
        """Another life of the worker, behind the proxies."""
        defaults = {"DOCKER_HOST": self.docker_proxy.host, "CRUCIBLE_ENGINE_PROBE_INTERVAL": "1"}
        return self.starter(**defaults | settings)

    def ask(self, method: str, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def submit(self, code: str = CODE, timeout: float = 5, **values: object) -> str:
        name = f"t-{uuid.uuid4().hex[:8]}"
        self.ask("POST", "/tasks", {"eval_id": name, "code": code, "timeout": timeout} | values)
        return name

    def result(self, name: str, patience: float = 2 * PATIENCE) -> dict:
        """The RESULT of a task, once it is settled."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if self.ask("GET", f"/tasks/{name}")["status"] in {"completed", "failed"}:
                return self.ask("GET", f"/tasks/{name}/result")
            time.sleep(0.1)
        log = "".join("".join(worker.raw[-12:]) for worker in self.starter._running)
        raise TimeoutError(f"{name} was not settled: {self.ask('GET', f'/tasks/{name}')}\n{log}")

    def settled_well(self, name: str) -> dict:
        """The result, which is the right one; where its sandbox was adopted, words may be missing, and it says so."""
        return self.said_well(self.result(name))

    @staticmethod
    def said_well(result: dict) -> dict:
        said = (result.get("stdout"), result.get("stderr"), result.get("exit_code"))
        if result.get("adopted"):
            assert result["truncated"]
            assert said[2] == SAID[2], result
            assert said[0] in {"hello\nbye\n", "bye\n", "hello\n", ""}, result
        else:
            assert said == SAID, result
        return result

    def kill(self) -> None:
        """kill -9 the worker that runs now, and wait for its end."""
        process = self.starter._running[-1].process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ends_clean(self, worker: WorkerProcess, code: int = 0) -> None:
        """The worker stops with its documented exit code and leaves nothing: no claim, no result, no sandbox."""
        worker.event("engine_available")
        assert worker.stop() == code, "".join(worker.raw[-10:])
        assert not worker.events("internal_error"), worker.events("internal_error")
        self.nothing_left()

    def nothing_left(self) -> None:
        journal = Journal(statefile.visit(str(self.state)))
        counts = journal.counts()
        journal.close()
        assert not any(counts.values()), counts
        assert sandboxes(self.daemon, self.starter.worker_id) == []

    def close(self) -> None:
        self.starter.close()
        self.proxy.close()
        self.docker_proxy.close()
        if self.queue is not None:
            self.queue.stop()
        for container in sandboxes(self.daemon, self.starter.worker_id):
            self.daemon.remove(container)
        self.daemon.close()
        shutil.rmtree(self.root, ignore_errors=True)
