"""Signals, crashes and restarts of a real worker process: no task and no result is lost, and no sandbox stays."""

import resource
import signal
import threading

import pytest
from scripted_server import after, document, status

from crucible_worker.journal import Journal

pytestmark = pytest.mark.engine
SHORT = {"eval_id": "short", "code": "import time; time.sleep(1); print('done')", "timeout": 30}
LONG = {"eval_id": "long", "code": "import time; time.sleep(300)", "timeout": 300}


def running(worker, eval_id, receiver):
    """Wait until the code of a task runs, which its event says."""
    receiver.wait(lambda: [c for c in receiver.calls if c.json["subject"] == eval_id], f"the start of {eval_id}")


@pytest.fixture
def start_told(start_worker, receiver):
    """Starts a worker whose events are received."""
    return lambda **settings: start_worker(EVENT_BUS_URL=f"{receiver.url}/events", **settings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_task_finish(number, queue, receiver, start_told):
    queue.push(SHORT, LONG)
    worker = start_told()
    running(worker, "short", receiver)
    worker.signal(number)
    assert worker.exit_code() == 0
    assert queue.completed("short")["output"] == "done\n"
    assert list(queue.tasks) == [LONG], "nothing more was claimed"
    assert worker.event("shutdown_requested")["stage"] == "drain"


def test_a_task_that_a_poll_in_flight_brings_is_run(queue, start_worker):
    gate = threading.Event()
    queue.poll_answers.append(after(gate, document(SHORT)))
    worker = start_worker()
    queue.wait(queue.polls)
    worker.signal(signal.SIGTERM)
    worker.event("shutdown_requested")
    gate.set()
    assert worker.exit_code() == 0
    assert queue.completed("short")["output"] == "done\n"
    assert len(queue.polls()) == 1


def test_the_second_signal_ends_the_task_and_says_so(queue, receiver, start_told):
    queue.push(LONG)
    worker = start_told()
    running(worker, "long", receiver)
    worker.signal(signal.SIGTERM)
    worker.event("shutdown_requested", stage="drain")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert queue.failed("long").startswith("worker_shutdown: ")


def test_quit_goes_straight_there(queue, receiver, start_told):
    queue.push(LONG)
    worker = start_told()
    running(worker, "long", receiver)
    worker.signal(signal.SIGQUIT)
    assert worker.exit_code() == 0
    assert queue.failed("long").startswith("worker_shutdown: ")
    assert worker.event("shutdown_requested")["stage"] == "cancel"


def test_a_drain_has_an_end_where_one_is_set(queue, receiver, start_told):
    queue.push(LONG)
    worker = start_told(CRUCIBLE_DRAIN_TIMEOUT="0.5")
    running(worker, "long", receiver)
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert queue.failed("long").startswith("worker_shutdown: ")
    worker.event("drain_timeout")


def test_the_third_signal_exits_and_the_next_start_settles(queue, receiver, start_told, docker):
    """The queue refuses to take the result meanwhile, so that there is something to wait for at each stage."""
    queue.push(LONG)
    gate = threading.Event()
    queue.settle_answers.append(after(gate, status(500)))
    worker = start_told()
    running(worker, "long", receiver)
    for stage in ("drain", "cancel"):
        worker.signal(signal.SIGTERM)
        worker.event("shutdown_requested", stage=stage)
    queue.wait(queue.settlements)
    worker.signal(signal.SIGTERM)
    code = worker.exit_code()
    gate.set()
    assert code in {75, 130}
    queue.calls.clear()
    start_told()
    assert queue.failed("long").startswith("worker_shutdown: ")


def test_a_result_waits_for_a_queue_that_is_down(queue, receiver, start_told):
    queue.push(SHORT)
    worker = start_told()
    running(worker, "short", receiver)
    queue.stop()
    worker.event("result_delivery_failed", eval_id="short")
    assert worker.get("/status")[1]["journal"]["pending"] == 1
    worker.event("queue_connection_failed")
    assert worker.get("/ready")[0] == 503
    assert worker.get("/health")[0] == 200
    queue.start()
    assert queue.completed("short")["output"] == "done\n"
    worker.event("queue_connection_restored")
    assert worker.stop() == 0


def test_a_result_outlives_the_worker_while_the_queue_is_down(queue, receiver, start_told):
    queue.push(SHORT)
    worker = start_told()
    running(worker, "short", receiver)
    queue.stop()
    worker.event("task_completed_successfully")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 75
    assert worker.event("worker_stopped")["undelivered"] == 1
    queue.start()
    start_told()
    assert queue.completed("short")["output"] == "done\n"


def test_sandboxes_of_another_worker_of_the_same_name_are_left_alone(
    queue, receiver, start_told, start_worker, docker, tmp_path
):
    """Two workers may have been given one name, or none; each has a state directory of its own."""
    queue.push(SHORT)
    first = start_told()
    running(first, "short", receiver)
    second = start_told(CRUCIBLE_STATE_DIR=str(tmp_path / "other"))
    second.event("engine_available")
    assert queue.completed("short")["output"] == "done\n"
    assert second.stop() == 0
    assert not second.events("orphan_removed")


def test_two_workers_never_share_a_state_directory(queue, start):
    first = start(DOCKER_HOST="unix:///nowhere")
    first.event("worker_started")
    second = start(DOCKER_HOST="unix:///nowhere")
    second.process.wait(60)
    second._reader.join()
    assert second.process.returncode == 64
    assert len(second.raw) == 1
    assert "another worker uses" in second.raw[0]
    assert first.stop() == 0


def test_a_refused_key_is_read_again(queue, start_worker, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("wrong-key")
    queue.key = "right-key"
    queue.push(SHORT)
    worker = start_worker(API_KEY_FILE=str(key_file))
    line = worker.event("queue_key_refused")
    assert "401" in line["error"]
    code, ready = worker.get("/ready")
    assert code == 503
    assert any("401" in reason for reason in ready["reasons"])
    key_file.write_text("right-key\n")
    assert queue.completed("short")["output"] == "done\n"
    worker.event("result_delivered")
    assert worker.stop() == 0
    assert not [line for line in worker.raw if "-key" in line and "key_" not in line]


def test_a_key_refused_at_delivery_keeps_the_result(queue, receiver, start_told, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("old-key")
    queue.key = "old-key"
    queue.push(SHORT)
    worker = start_told(API_KEY_FILE=str(key_file))
    running(worker, "short", receiver)
    queue.key = "new-key"
    worker.event("result_key_refused", eval_id="short")
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 77
    key_file.write_text("new-key")
    queue.calls.clear()
    start_told(API_KEY_FILE=str(key_file))
    assert queue.completed("short")["output"] == "done\n"


def test_hup_reads_the_key_again(queue, start, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("old-key")
    journal = Journal.of(str(start.state_dir))
    journal.claim("gone", None, "docker", 0.0)
    journal.close()
    queue.key = "new-key"
    worker = start(DOCKER_HOST="unix:///nowhere", API_KEY_FILE=str(key_file))
    worker.event("result_key_refused", count=4)
    key_file.write_text("new-key")
    worker.signal(signal.SIGHUP)
    worker.event("reloading")
    queue.settled("gone")
    worker.event("result_delivered", eval_id="gone")
    assert worker.stop() == 0


def test_a_full_disk_stops_the_claiming_and_nothing_else(queue, receiver, start_told):
    queue.push(SHORT, {"eval_id": "next", "code": "print('next')"})
    worker = start_told()
    running(worker, "short", receiver)
    # Every write past the first page of a file fails from here on, as on a full disk.
    old = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    worker.event("journal_write_failed")
    ready = worker.get("/ready")
    assert ready[0] == 503
    assert worker.get("/health")[0] == 200
    assert len(queue.tasks) == 1
    resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, old)
    assert queue.completed("short")["output"] == "done\n"
    assert queue.completed("next")["output"] == "next\n"
    worker.event("journal_write_restored")
    assert worker.stop() == 0
    assert len(queue.settlements("short")) == 1
