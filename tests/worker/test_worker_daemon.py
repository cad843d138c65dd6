"""A Docker Engine that is not there, goes away under a task, and comes back: one of our own, with nothing shared."""

import pytest
from private_docker import private_docker as private_docker_engine
from worker_process import sandboxes

from crucible_worker.engines.daemon import Daemon

pytestmark = pytest.mark.engine
ENGINES = {"CRUCIBLE_ENGINES": "docker=runc"}  # which it has, whatever the engine under test has
GOOD = {"eval_id": "good", "code": "print('good')"}
LONG = {"eval_id": "long", "code": "import time; time.sleep(300)", "timeout": 300}


@pytest.fixture(scope="module")
def private_docker():
    with private_docker_engine() as docker:
        yield docker


@pytest.fixture
def again(private_docker):
    """The private daemon, running again after the test whatever became of it."""
    yield private_docker
    if private_docker._process is None:
        private_docker.start()


def test_without_a_daemon_the_worker_stays_claims_nothing_and_recovers(again, queue, receiver, start):
    again.stop()
    queue.push(GOOD)
    worker = start(DOCKER_HOST=again.host, **ENGINES)
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
    settings = {"EVENT_BUS_URL": f"{receiver.url}/events", "CRUCIBLE_ENGINE_PROBE_INTERVAL": "1"}
    worker = start(DOCKER_HOST=again.host, **ENGINES, **settings)
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
