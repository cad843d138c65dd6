import contextlib
import time

import pytest
from scripted_queue import ScriptedQueue
from scripted_server import PATIENCE, ScriptedServer
from worker_process import Starter, sandboxes


@pytest.fixture(scope="session")
def docker(daemon, sandbox_image):
    """The Docker Engine of this host, with the sandbox image."""
    return daemon


@pytest.fixture(scope="session")
def gvisor(engine_runtime):
    return engine_runtime("runsc")


@pytest.fixture
def queue():
    with ScriptedQueue() as running:
        yield running


@pytest.fixture
def receiver():
    """Takes events, or whatever else is posted to it."""
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def start(queue, tmp_path):
    """Starts a worker; needs no engine."""
    with contextlib.closing(Starter(queue.url, tmp_path / "state")) as starter:
        yield starter


@pytest.fixture
def start_worker(docker, start):
    """Starts a worker on the real engine. At the end of the test no sandbox of it may be left."""
    yield start
    # A verdict is told before its sandbox is gone.
    until = time.monotonic() + PATIENCE
    while start.alive() and sandboxes(docker, start.worker_id) and time.monotonic() < until:
        time.sleep(0.05)
    start.close()
    left = sandboxes(docker, start.worker_id)
    for container in left:
        docker.remove(container)
    assert left == [], "sandboxes were left behind"
