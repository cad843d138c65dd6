"""A Docker Engine that is not there, goes away under a task, and comes back: one of our own, with nothing shared."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from precondition import unavailable
from scripted_server import PATIENCE
from worker_process import clean_environment, sandboxes

from crucible_worker.engines.daemon import Daemon

pytestmark = pytest.mark.engine
GOOD = {"eval_id": "good", "code": "print('good')"}
LONG = {"eval_id": "long", "code": "import time; time.sleep(300)", "timeout": 300}


class PrivateDocker:
    """A dockerd without networks, in a directory of its own. The path is short: it holds Unix sockets."""

    def __init__(self, root: Path) -> None:
        self.host = f"unix://{root}/docker.sock"
        self._root = root
        self._process: subprocess.Popen | None = None
        self._log: threading.Thread | None = None

    def start(self) -> None:
        """Start it, and return when it takes calls. On a busy host it may give up on its own containerd: then again."""
        for _ in range(3):
            said = self._start()
            if said is None:
                return
            self._ended()
        raise RuntimeError(f"dockerd did not start: {said}")

    def _start(self) -> str | None:
        root = self._root
        (root / "daemon.json").write_text("{}")
        self._process = subprocess.Popen(
            [
                "dockerd", "-H", self.host, "--data-root", f"{root}/data", "--exec-root", f"{root}/exec",
                "--pidfile", f"{root}/pid", "--bridge=none", "--iptables=false", "--config-file", f"{root}/daemon.json",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "API listen on" in line:
                break
        else:
            return "".join(said[-5:])
        # What it says from here on must be read, or it stops at a full pipe.
        self._log = threading.Thread(target=self._process.stderr.read)
        self._log.start()
        return None

    def kill(self) -> None:
        self._process.kill()
        self._ended()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._ended()

    def _ended(self) -> None:
        self._process.wait(PATIENCE)
        if self._log is not None:
            self._log.join()
            self._log = None
        self._process.stderr.close()
        self._process = None

    def build_image(self) -> None:
        command = [sys.executable, "-m", "crucible_worker", "image", "build", "--docker-host", self.host]
        subprocess.run(command, check=True, capture_output=True, env=clean_environment())


@pytest.fixture(scope="module")
def private_docker():
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        unavailable("a Docker Engine of our own needs dockerd and root")
    root = Path(tempfile.mkdtemp(prefix="cw-"))
    docker = PrivateDocker(root)
    try:
        docker.start()
        docker.build_image()
        yield docker
    finally:
        docker.stop()
        subprocess.run(["umount", "-R", f"{root}/data", f"{root}/exec/netns"], check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def again(private_docker):
    """The private daemon, running again after the test whatever became of it."""
    yield private_docker
    if private_docker._process is None:
        private_docker.start()


def test_without_a_daemon_the_worker_stays_claims_nothing_and_recovers(again, queue, receiver, start):
    again.stop()
    queue.push(GOOD)
    worker = start(DOCKER_HOST=again.host)
    line = worker.event("engine_unavailable", engine="docker")
    assert "does not answer" in line["error"]
    code, health = worker.get("/health")
    assert (code, health["status"]) == (503, "unhealthy")
    assert health["reasons"]
    assert queue.polls() == []
    again.start()
    assert queue.completed("good")["output"] == "good\n"
    assert worker.get("/health")[0] == 200
    assert worker.stop() == 0
    assert len(worker.events("engine_unavailable")) == 1, "said once, not at every try"


def test_a_daemon_that_goes_away_fails_the_task_and_not_the_worker(again, queue, receiver, start):
    queue.push(LONG, GOOD)
    worker = start(DOCKER_HOST=again.host, EVENT_BUS_URL=f"{receiver.url}/events", CRUCIBLE_ENGINE_PROBE_INTERVAL="1")
    receiver.wait(lambda: receiver.calls)
    again.kill()
    assert queue.failed("long").startswith("engine_error: ")
    assert worker.event("task_failed", eval_id="long")["reason"] == "engine_error"
    worker.event("engine_unavailable")
    again.start()
    # The next task is claimed at once, before anybody can know, or after the engine is back; it must not be lost.
    call = queue.settled("good")
    assert call.path.endswith("/complete") or call.json["error"].startswith("engine_unavailable: ")
    queue.push(GOOD | {"eval_id": "later"})
    assert queue.completed("later")["output"] == "good\n"
    assert worker.stop() == 0
    daemon = Daemon(again.host)
    left = sandboxes(daemon, start.worker_id)
    for container in left:
        daemon.remove(container)
    daemon.close()
