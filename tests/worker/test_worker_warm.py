"""A worker that keeps sandboxes ready: what it shows of them, and that none outlives it."""

import signal
import time

import pytest
from scripted_server import PATIENCE
from worker_process import sandboxes

pytestmark = pytest.mark.engine


def ready(worker, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while worker.get("/status")[1]["warm"]["docker/python"] != count:
        assert time.monotonic() < until, worker.get("/status")
        time.sleep(0.05)


def test_tasks_find_sandboxes_ready_and_a_drain_leaves_none(queue, start_worker, docker):
    worker = start_worker(CRUCIBLE_WARM="2")
    ready(worker, 2)
    assert "crucible_worker_warm_ready 2.0" in worker.fetch("/metrics")[1]
    for name in ("one", "two"):
        queue.push({"eval_id": name, "code": "print(6 * 7)"})
        result = queue.completed(name)
        assert (result["warm"], result["stdout"], result["reason"]) == (True, "42\n", "exited")
        assert set(result["phases"]) == {"boot_ms", "run_ms"}
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert not sandboxes(docker, start_worker.worker_id)


def test_those_of_a_killed_worker_go_with_its_next_life(start_worker, docker):
    worker = start_worker(CRUCIBLE_WARM="2")
    ready(worker, 2)
    worker.signal(signal.SIGKILL)
    worker.exit_code()
    before = sandboxes(docker, start_worker.worker_id)
    assert len(before) == 2
    again = start_worker(CRUCIBLE_WARM="0")
    until = time.monotonic() + PATIENCE
    while sandboxes(docker, start_worker.worker_id):
        assert time.monotonic() < until
        time.sleep(0.05)
    again.event("orphan_removed", count=2)
