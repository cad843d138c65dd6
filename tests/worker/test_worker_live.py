"""Live logs from a real sandbox: through Redis, and through the embedded queue, before the task has ended."""

import json
import shutil
import signal
import socket
import subprocess
import time

import pytest
from precondition import unavailable
from scripted_server import PATIENCE

from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.transport import HttpTransport

pytestmark = pytest.mark.engine
CODE = """
import sys, time
print("begun", flush=True)
print("err", file=sys.stderr, flush=True)
time.sleep(2)
print("ended")
"""
SLOW = {"eval_id": "slow/ü", "timeout": 60, "code": CODE}


@pytest.fixture
def redis_url(tmp_path):
    if shutil.which("redis-server") is None:
        unavailable("redis-server is missing")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([*command, "--requirepass", "pass-of-logs"], stdout=subprocess.PIPE, text=True)
    while "Ready to accept connections" not in process.stdout.readline():
        pass
    yield f"redis://:pass-of-logs@127.0.0.1:{port}/0"
    process.terminate()
    process.communicate(timeout=PATIENCE)


def test_redis_hears_a_task_while_it_runs(queue, redis_url, start_worker):
    import redis

    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("evaluation:*:logs")
        listener.get_message(timeout=PATIENCE)
        worker = start_worker(CRUCIBLE_LIVE_LOGS=redis_url)
        queue.push(SLOW)
        told: list[dict] = []
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not (told and told[-1]["is_final"]):
            if message := listener.get_message(timeout=1):
                assert message["channel"].decode() == "evaluation:slow/ü:logs"
                told.append(json.loads(message["data"]))
                if len(told) == 1:
                    assert not queue.settlements(), "the task still runs"
        assert worker.stop() == 0
    assert [message["sequence"] for message in told] == list(range(len(told)))
    assert "".join(m["content"] for m in told if m["stream"] == "stdout") == "begun\nended\n"
    assert "".join(m["content"] for m in told if m["stream"] == "stderr") == "err\n"
    assert {m["executor_id"] for m in told} == {start_worker.worker_id}
    assert [m["is_final"] for m in told] == [False] * (len(told) - 1) + [True]
    assert "pass-of-logs" not in "".join(worker.raw)


def test_the_embedded_queue_tells_while_a_task_runs_and_across_a_crash_of_its_worker(start_worker, tmp_path):
    code = "import time\nprint('begun', flush=True)\ntime.sleep(6)\nprint('ended')"
    with EmbeddedQueue() as queue:
        http = HttpTransport(str)

        def logs(after: int) -> dict:
            path = f"{queue.url}/tasks/e/logs?after={after}"
            return http.request("GET", path, headers={"Prefer": "wait=30"}, deadline=40).json()

        http.request("POST", f"{queue.url}/tasks", json={"eval_id": "e", "code": code, "timeout": 60}).check()
        settings = {"QUEUE_SERVICE_URL": queue.url, "CRUCIBLE_LIVE_LOGS": "queue"}
        first = start_worker(**settings)
        begun = logs(-1)
        assert [message["content"] for message in begun["messages"]] == ["begun\n"]
        assert not begun["is_final"]
        first.signal(signal.SIGKILL)
        first.process.wait(PATIENCE)
        start_worker(**settings)
        rest, after, final = [], begun["messages"][-1]["sequence"], False
        while not final:
            answer = logs(after)
            rest += answer["messages"]
            final, after = answer["is_final"], rest[-1]["sequence"] if rest else after
        assert "".join(message["content"] for message in rest) == "ended\n"


def test_a_queue_that_wants_no_logs_costs_a_line_and_nothing_else(queue, start_worker):
    queue.push({"eval_id": "a", "code": "print(1)"}, {"eval_id": "b", "code": "print(2)"})
    worker = start_worker(CRUCIBLE_LIVE_LOGS="queue")
    assert queue.completed("b")["stdout"] == "2\n"
    worker.event("live_logs_refused")
    assert worker.stop() == 0
    assert len(worker.events("live_logs_refused")) == 1


def test_a_redis_that_is_down_costs_a_line_and_nothing_else(queue, start_worker):
    queue.push({"eval_id": "a", "code": "print(1)"})
    worker = start_worker(CRUCIBLE_LIVE_LOGS="redis://127.0.0.1:1/0")
    assert queue.completed("a")["stdout"] == "1\n"
    worker.event("live_logs_unreachable")
    assert worker.stop() == 0
