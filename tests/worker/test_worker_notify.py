"""A real worker under a service manager: what it hears, from start to end."""

import signal

import pytest
from service_manager import ServiceManager

SECONDS = 2


@pytest.fixture
def manager(tmp_path):
    """A service manager that wants to hear from the worker every two seconds."""
    listening = ServiceManager(str(tmp_path / "notify"))
    yield listening
    listening.close()


@pytest.fixture
def watched(manager):
    return {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": f"{SECONDS}000000"}


def test_it_is_ready_when_it_serves_and_feeds_the_watchdog_until_it_stops(start, manager, watched):
    """Without an engine: systemd must not restart a worker because Docker is down."""
    worker = start(**watched, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert manager.wait("READY=1") == ["READY=1"]
    assert worker.get("/live")[0] == 200
    for _ in range(3):
        manager.wait("WATCHDOG=1", "STATUS=")
    status = manager.wait("STATUS=unhealthy (no engine works: ")[0]
    assert status.endswith("0 of 1 slots busy")
    assert worker.stop() == 0
    assert manager.wait("STOPPING=1")[-1].startswith("EXTEND_TIMEOUT_USEC=")


@pytest.mark.engine
def test_a_stop_may_take_as_long_as_its_task(start_worker, queue, manager, watched):
    """The manager is asked for more time for as long as the worker is not stalled."""
    worker = start_worker(**watched).ready()
    queue.push({"eval_id": "slow", "code": "import time; time.sleep(5); print('done')"})
    worker.event("processing_task_started")
    manager.wait("STATUS=healthy; 1 of 1 slots busy")
    worker.signal(signal.SIGTERM)
    first = manager.wait("STOPPING=1", "EXTEND_TIMEOUT_USEC=")
    assert first[0] == "STATUS=not ready (draining); 1 of 1 slots busy"
    assert "STOPPING=1" not in manager.wait("EXTEND_TIMEOUT_USEC=", "WATCHDOG=1")
    assert worker.exit_code() == 0
    assert queue.completed("slow")["stdout"] == "done\n"


def test_a_manager_that_cannot_be_reached_costs_one_line(start, tmp_path):
    worker = start(NOTIFY_SOCKET=str(tmp_path / "nowhere"), DOCKER_HOST="unix:///nonexistent/docker.sock")
    worker.event("service_manager_unreachable")
    assert worker.stop() == 0
    assert len(worker.events("service_manager_unreachable")) == 1
