"""A worker that was killed, and its next life: what ran is followed to its end, what cannot be is told, once."""

import signal
import sqlite3
import time

import pytest
from scripted_server import PATIENCE
from worker_process import sandboxes

from crucible_worker import outbox
from crucible_worker.journal import RESULTS, Journal

pytestmark = pytest.mark.engine
LONG = {"eval_id": "long", "code": "import time; time.sleep(300)", "timeout": 300}
# Silent when it is not listened to: what it says in between nobody hears.
SPEAKS = "import sys, time; print('before', flush=True); time.sleep(8); print('after'); print('err', file=sys.stderr)"


@pytest.fixture
def start_told(start_worker, receiver):
    return lambda **settings: start_worker(EVENT_BUS_URL=f"{receiver.url}/events", **settings)


@pytest.fixture
def killed(queue, receiver, start_worker, start_told):
    """Runs a task in a worker, and kills the worker once the code runs and the worker has heard some words of it."""

    def run(task: dict, words: bytes = b"") -> None:
        queue.push(task)
        worker = start_told()
        receiver.wait(lambda: [c for c in receiver.calls if c.json["subject"] == task["eval_id"]], "the start")
        heard(start_worker.state_dir / "transcripts", words)
        worker.signal(signal.SIGKILL)
        assert worker.exit_code() == -signal.SIGKILL

    return run


def heard(folder, words: bytes) -> None:
    until = time.monotonic() + PATIENCE
    while not any(words in path.read_bytes() for path in folder.iterdir()):
        assert time.monotonic() < until, f"{words!r} was not heard"


def ended(docker, container: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if docker.wait(container, 5) is not None:
            return
    raise TimeoutError(container)


def test_a_sandbox_that_still_runs_is_followed_to_its_end(queue, killed, start_told):
    killed({"eval_id": "speaks", "code": SPEAKS}, b"before")
    again = start_told()
    result = queue.completed("speaks")
    assert (result["status"], result["reason"], result["exit_code"]) == ("completed", "exited", 0)
    assert (result["stdout"], result["stderr"]) == ("before\nafter\n", "err\n")
    assert result["adopted"], "what was said while nobody listened is missing, and the result must not hide it"
    assert result["truncated"]
    assert 8000 <= result["duration_ms"] < 60_000
    again.event("sandbox_adopted")
    again.event("result_delivered")
    assert again.stop() == 0
    assert len(queue.settlements()) == 1


def test_one_that_ended_meanwhile_is_judged_by_its_exit_code(queue, killed, start_worker, start_told, docker):
    code = "import time; print('so far', flush=True); time.sleep(2); raise SystemExit(3)"
    killed({"eval_id": "three", "code": code}, b"so far")
    ended(docker, sandboxes(docker, start_worker.worker_id)[0])
    again = start_told()
    result = queue.completed("three")
    assert (result["reason"], result["exit_code"], result["stdout"]) == ("exited_nonzero", 3, "so far\n")
    assert result["adopted"]
    again.event("result_delivered")
    assert again.stop() == 0


def test_one_that_runs_past_its_time_meanwhile_gets_no_more(queue, killed, start_told):
    killed({"eval_id": "late", "code": "print('so far', flush=True)\nwhile True: pass", "timeout": 3}, b"so far")
    time.sleep(3)
    again = start_told()
    result = queue.completed("late")
    assert (result["reason"], result["stdout"]) == ("timeout", "so far\n")
    assert again.stop() == 0


def test_one_that_was_killed_meanwhile_has_no_verdict(queue, killed, start_worker, start_told, docker):
    killed(LONG)
    docker.kill(sandboxes(docker, start_worker.worker_id)[0])
    again = start_told()
    assert queue.failed("long").startswith("worker_crashed: ")
    assert again.stop() == 0


def test_one_that_is_gone_is_failed(queue, receiver, killed, start_worker, start_told, docker):
    killed(LONG)
    docker.remove(sandboxes(docker, start_worker.worker_id)[0])
    again = start_told()
    assert queue.failed("long").startswith("worker_crashed: ")
    assert again.event("task_failed", eval_id="long")["reason"] == "worker_crashed"
    told = receiver.wait(lambda: [c for c in receiver.calls if c.json["type"].endswith("failed")])
    assert told[0].json["data"]["error"].startswith("worker_crashed: ")
    assert again.stop() == 0
    assert len(queue.settlements()) == 1


def test_a_task_that_ends_three_lives_is_poison(queue, killed, start_worker, start_told, docker):
    killed(LONG)
    for _ in range(2):
        again = start_told()
        if again.event("worker_started") and not queue.settlements():
            again.event("engine_available")
            again.signal(signal.SIGKILL)
            again.exit_code()
    last = start_told()
    assert queue.failed("long").startswith("poison: 3 workers")
    last.event("orphan_removed")
    assert last.stop() == 0


def test_a_shutdown_ends_what_was_taken_over(queue, killed, start_told):
    killed(LONG)
    again = start_told()
    again.event("engine_available")
    again.signal(signal.SIGQUIT)
    assert again.exit_code() == 0
    assert queue.failed("long").startswith("worker_shutdown: ")


def test_sandboxes_that_no_claim_knows_are_removed(queue, killed, start_worker, start_told, docker):
    killed(LONG)
    left = sandboxes(docker, start_worker.worker_id)
    journal = Journal.of(str(start_worker.state_dir))
    for claim in journal.claims():
        journal.abandon(claim.id)
    journal.close()
    again = start_told()
    assert again.event("orphan_removed")["container_id"] == left[0]
    assert again.stop() == 0


def test_a_journal_that_cannot_be_read_is_set_aside(queue, start):
    """With one line that says where it is: results may be in it."""
    start.state_dir.mkdir()
    (start.state_dir / "journal.db").write_bytes(b"garbage " * 1000)
    worker = start(DOCKER_HOST="unix:///nowhere")
    line = worker.event("journal_set_aside")
    assert line["level"] == "error"
    assert worker.stop() == 0
    kept = [path for path in start.state_dir.iterdir() if "set-aside" in path.name]
    assert [path.read_bytes() for path in kept] == [b"garbage " * 1000]
    assert kept[0].name in line["detail"]


def test_a_journal_of_a_newer_version_is_set_aside(queue, start):
    journal = Journal.of(str(start.state_dir))
    journal.settle(0, outbox.FAIL, "kept", {"error": "x"}, time.time())
    journal.close()
    with sqlite3.connect(start.state_dir / "journal.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    worker = start(DOCKER_HOST="unix:///nowhere")
    assert "newer" in worker.event("journal_set_aside")["detail"]
    assert worker.stop() == 0
    kept = next(path for path in start.state_dir.iterdir() if "set-aside" in path.name)
    with sqlite3.connect(kept) as db:
        assert db.execute("SELECT count(*) FROM outbox WHERE lane = ?", (RESULTS,)).fetchone() == (1,)
    db.close()
