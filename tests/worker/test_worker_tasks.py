"""A worker process, a plain queue and the real engine: what becomes of tasks, and what can be seen of it."""

import itertools
import json
import re
import time

import pytest
from engine_under_test import PLAIN_RUNTIME
from scripted_server import PATIENCE, document, status

pytestmark = pytest.mark.engine
HELLO = {"eval_id": "hello", "code": "print('hello')", "language": "python", "engine": "docker", "timeout": 20}


def test_a_task_is_completed_with_its_result(queue, start_worker):
    queue.push(HELLO)
    worker = start_worker()
    result = queue.completed("hello")
    expected = {
        "id": "hello", "status": "completed", "reason": "exited", "output": "hello\n", "error": None, "exit_code": 0,
        "signal": None, "stdout": "hello\n", "stderr": "", "stdout_bytes": 6, "stderr_bytes": 0, "truncated": False,
        "encoding": "utf-8", "engine": "docker", "requested_engine": "docker", "fallback": False,
        "runtime": PLAIN_RUNTIME,
        "image": "crucible-sandbox:python", "worker_id": start_worker.worker_id, "attempt": 1,
    }  # fmt: skip
    assert {key: result[key] for key in expected} == expected
    assert result["limits"]["timeout_seconds"] == 20
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", result["started_at"])
    assert result["duration_ms"] > 0
    assert {"create_ms", "start_ms", "run_ms"} <= result["phases"].keys()
    worker.event("result_delivered", eval_id="hello", kind="complete")
    assert worker.stop() == 0
    assert len(queue.settlements()) == 1


def test_each_line_about_a_task_says_which_and_who(queue, start_worker):
    queue.push(HELLO)
    worker = start_worker()
    for event in ("processing_task_started", "task_completed_successfully"):
        line = worker.event(event)
        assert line["eval_id"] == "hello"
        assert line["engine"] == "docker"
    assert worker.stop() == 0
    for line in worker.lines:
        assert {"event", "level", "timestamp", "worker"} <= line.keys()
        assert line["worker"] == start_worker.worker_id
    assert worker.events("worker_stopped")[0]["exit_code"] == 0


def test_a_program_that_fails_is_a_verdict(queue, start_worker):
    queue.push({"eval_id": "bad", "code": "print('before')\n1 / 0"})
    start_worker()
    result = queue.completed("bad")
    assert (result["status"], result["reason"], result["exit_code"]) == ("failed", "exited_nonzero", 1)
    assert result["output"] == "before\n"
    assert "ZeroDivisionError" in result["stderr"]


def test_tasks_run_in_order_one_at_a_time(queue, start_worker):
    names = [f"task-{n}" for n in range(4)]
    queue.push(*[{"eval_id": name, "code": "print(1)"} for name in names])
    start_worker()
    results = [queue.completed(name) for name in names]
    assert [call.path.split("/")[2] for call in queue.settlements()] == names
    for earlier, later in itertools.pairwise(results):
        assert earlier["finished_at"] <= later["started_at"]


def wait_for_status(worker, found):
    """The status document, once it shows what is looked for."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        answer = worker.get("/status")[1]
        if found(answer):
            return answer
    raise TimeoutError(answer)


def test_two_slots_run_two_tasks_at_once_and_claim_no_more(queue, start_worker):
    queue.push(*[{"eval_id": f"n{n}", "code": "import time; time.sleep(3)"} for n in range(4)])
    worker = start_worker(CRUCIBLE_CONCURRENCY="2")
    worker.event("processing_task_started", count=2)
    both = wait_for_status(worker, lambda s: [slot["doing"] for slot in s["slots"]] == ["running", "running"])
    assert {slot["eval_id"] for slot in both["slots"]} == {"n0", "n1"}
    assert len(queue.tasks) == 2, "what cannot run now stays in the queue"
    for n in range(4):
        queue.completed(f"n{n}")


def test_health_answers_while_a_task_runs(queue, start_worker):
    queue.push({"eval_id": "busy", "code": "while True: pass", "timeout": 2})
    worker = start_worker()
    worker.event("processing_task_started", eval_id="busy")
    code, health = worker.get("/health")
    assert code == 200
    assert health["status"] == "healthy"
    assert health["worker_id"] == start_worker.worker_id
    assert health["queue_url"] == queue.url
    assert health["engines"]["docker"] == {"runtime": PLAIN_RUNTIME, "available": True, "detail": ""}
    assert queue.completed("busy")["reason"] == "timeout"
    metrics = worker.fetch("/metrics")[1]
    assert 'crucible_worker_tasks_total{engine="docker",reason="timeout"} 1.0' in metrics


def test_a_worker_that_is_well_is_ready(queue, start_worker):
    worker = start_worker()
    queue.wait(queue.polls)
    wait_for_status(worker, lambda s: s["reasons"] == [])
    assert worker.get("/ready")[0] == 200


def test_the_queue_is_told_what_this_worker_runs(queue, start_worker):
    start_worker(API_KEY="the-key", CRUCIBLE_POLL_WAIT="1")
    poll = queue.wait(queue.polls)[0]
    assert poll.path == "/tasks/next?engines=docker&languages=python"
    assert poll.headers["x-api-key"] == "the-key"
    assert poll.headers["prefer"] == "wait=1"


def test_an_engine_that_does_not_work_is_replaced_and_said(queue, start_worker):
    queue.push(HELLO | {"engine": "gvisor"})
    worker = start_worker(CRUCIBLE_ENGINES=f"docker={PLAIN_RUNTIME},gvisor=no-such-runtime")
    result = queue.completed("hello")
    assert (result["engine"], result["requested_engine"], result["fallback"]) == ("docker", "gvisor", True)
    line = worker.event("engine_fallback", eval_id="hello")
    assert line["level"] == "warning"
    assert (line["requested_engine"], line["fallback_engine"]) == ("gvisor", "docker")
    assert worker.event("engine_unavailable")["engine"] == "gvisor"
    assert worker.get("/health")[1]["engines"]["gvisor"]["available"] is False


def test_without_fallback_such_a_task_fails(queue, start_worker):
    queue.push(HELLO | {"engine": "gvisor"}, HELLO | {"eval_id": "next"})
    worker = start_worker(
        CRUCIBLE_ENGINES=f"docker={PLAIN_RUNTIME},gvisor=no-such-runtime", CRUCIBLE_ENGINE_FALLBACK="never"
    )
    assert queue.failed("hello").startswith("engine_unavailable: ")
    assert worker.event("task_failed")["reason"] == "engine_unavailable"
    queue.completed("next")


def test_gvisor_runs_tasks_too(gvisor, queue, start_worker):
    queue.push(HELLO | {"engine": "gvisor"})
    start_worker(CRUCIBLE_ENGINES=f"docker={PLAIN_RUNTIME},gvisor=runsc")
    result = queue.completed("hello")
    assert (result["engine"], result["runtime"], result["fallback"]) == ("gvisor", "runsc", False)


def test_no_secret_is_to_be_seen_anywhere(queue, receiver, start_worker, tmp_path):
    """Not even where a queue repeats it in an error, or the code looks for it."""
    secret = "s3cr3t-key-of-the-queue"
    spy = (
        "import os, glob\nprint(dict(os.environ))\n"
        "for name in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try: print(open(name).read())\n    except OSError as error: print(error)\n"
    )
    queue.key = secret
    queue.poll_answers.append(status(500, f"I was sent {secret}"))
    queue.settle_answers.append(status(500, f"I was sent {secret}"))
    queue.push({"eval_id": "spy", "code": spy})
    worker = start_worker(API_KEY=secret, EVENT_BUS_URL=f"{receiver.url}/events", CRUCIBLE_LOG_LEVEL="debug")
    assert queue.completed("spy")["exit_code"] == 0
    worker.event("result_delivered")
    receiver.wait(lambda: len(receiver.calls) >= 2)
    shown = [worker.fetch(path)[1] for path in ("/health", "/ready", "/metrics", "/status")]
    assert worker.stop() == 0
    seen = [*worker.raw, *shown, *(c.body.decode() for c in queue.calls + receiver.calls)]
    assert secret not in "\n".join(seen)
    assert all(secret not in value for call in receiver.calls for value in call.headers.values())
    assert secret.encode() not in b"".join(
        path.read_bytes() for path in start_worker.state_dir.rglob("*") if path.is_file()
    )


def test_a_result_is_not_said_again_when_the_queue_has_forgotten_the_task(queue, start_worker):
    queue.settle_answers.extend([status(404, '{"detail":"Not Found"}'), document({"status": "not_found"})])
    queue.push(HELLO, HELLO | {"eval_id": "second"}, HELLO | {"eval_id": "third"})
    worker = start_worker()
    worker.event("result_already_settled", eval_id="hello")
    worker.event("result_already_settled", eval_id="second")
    worker.event("result_delivered", eval_id="third")
    assert worker.stop() == 0
    assert len(queue.settlements()) == 3


def test_a_result_that_is_refused_for_good_becomes_a_dead_letter(queue, start_worker):
    queue.settle_answers.append(status(422, '{"detail":"no"}'))
    queue.push(HELLO, HELLO | {"eval_id": "second"})
    worker = start_worker()
    assert "422" in worker.event("result_rejected", eval_id="hello")["answer"]
    worker.event("result_delivered", eval_id="second")
    assert worker.get("/status")[1]["journal"]["dead"] == 1
    assert worker.stop() == 0


@pytest.mark.parametrize("receipt", [b"", b"null", b'"ok"', b"true", b"[]", b'{"status":"ok"}'])
def test_any_receipt_will_do(receipt, queue, start):
    """2xx settles, whatever JSON comes with it. The result is that of a crashed task, so that no engine is needed."""
    from crucible_worker.journal import Journal

    journal = Journal.of(str(start.state_dir))
    journal.claim("gone", None, "docker", 0.0)
    journal.close()
    queue.settle_answers.append(status(200, receipt))
    worker = start(DOCKER_HOST="unix:///nowhere")
    worker.event("result_delivered", eval_id="gone")
    assert worker.stop() == 0
    assert len(queue.settlements()) == 1


def test_results_are_json_for_any_bytes(queue, start_worker):
    queue.push({"eval_id": "bytes", "code": "import sys; sys.stdout.buffer.write(bytes(range(256)))"})
    start_worker()
    result = queue.completed("bytes")
    assert result["encoding"] == "base64"
    assert json.dumps(result)
