"""Who is told about evaluations, and what: CloudEvents to an HTTP server, publications to a Redis server."""

import json
import shutil
import socket
import subprocess
import time

import pytest
from precondition import unavailable
from scripted_server import PATIENCE, status

pytestmark = pytest.mark.engine
GOOD = {"eval_id": "good/1", "code": "print('good')", "timeout": 7}
BAD = {"eval_id": "bad", "language": "cobol", "code": ""}


def test_cloudevents_tell_the_start_and_the_end(queue, receiver, start_worker):
    queue.push(GOOD, BAD)
    worker = start_worker(API_SERVICE_URL=receiver.url, EVENT_BUS_URL="", API_KEY="the-key")
    receiver.wait(lambda: len(receiver.calls) == 3)
    assert worker.stop() == 0
    for call in receiver.calls:
        assert (call.method, call.path) == ("POST", "/events")
        assert call.headers["content-type"] == "application/cloudevents+json"
        assert call.headers["x-api-key"] == "the-key", "the platform's own key, for the platform"
        assert call.json["specversion"] == "1.0"
        assert start_worker.worker_id in call.json["source"]
    running, completed, failed = (call.json for call in receiver.calls)
    assert len({event["id"] for event in (running, completed, failed)}) == 3
    assert (running["type"], running["subject"]) == ("crucible.evaluation.running", "good/1")
    assert running["data"].keys() == {"eval_id", "executor_id", "container_id", "timeout", "started_at"}
    assert running["data"]["timeout"] == 7
    assert completed["type"] == "crucible.evaluation.completed"
    assert completed["data"]["output"] == "good\n"
    assert completed["data"]["executor_id"] == start_worker.worker_id
    assert (failed["type"], failed["subject"]) == ("crucible.evaluation.failed", "bad")
    assert failed["data"]["error"].startswith("language_unknown: ")


def test_a_key_is_for_the_platform_only(queue, receiver, start_worker):
    queue.push(BAD)
    start_worker(EVENT_BUS_URL=f"{receiver.url}/events", API_KEY="the-key")
    assert "x-api-key" not in receiver.wait(lambda: receiver.calls)[0].headers


def test_a_bus_without_such_an_endpoint_is_said_once(queue, receiver, start_worker):
    receiver.default = status(404)
    queue.push(GOOD, BAD)
    worker = start_worker(EVENT_BUS_URL=f"{receiver.url}/events")
    receiver.wait(lambda: len(receiver.calls) == 3)
    queue.settled("bad")
    assert worker.stop() == 0
    assert len(worker.events("event_bus_refuses")) == 1


def test_a_bus_that_is_down_delays_nothing(queue, receiver, start_worker):
    """Events wait for it; results do not, and neither does the exit."""
    receiver.stop()
    queue.push(GOOD, BAD)
    worker = start_worker(EVENT_BUS_URL=f"{receiver.url}/events")
    worker.event("event_bus_unreachable")
    assert queue.completed("good/1")["output"] == "good\n"
    queue.failed("bad")
    worker.event("result_delivered", eval_id="bad")
    assert worker.get("/status")[1]["journal"]["events"] == 3
    assert worker.stop() == 0
    assert len(worker.events("event_bus_unreachable")) == 1
    receiver.start()
    again = start_worker(EVENT_BUS_URL=f"{receiver.url}/events")
    receiver.wait(lambda: len(receiver.calls) == 3)
    assert {call.json["subject"] for call in receiver.calls} == {"good/1", "bad"}
    assert again.stop() == 0


class RedisServer:
    """A real redis-server without persistence."""

    def __init__(self, directory) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        self.process = subprocess.Popen([*command, "--requirepass", "pass-of-redis"], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if "Ready to accept connections" in line:
                break
        else:
            raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def redis_server(tmp_path):
    if shutil.which("redis-server") is None:
        unavailable("redis-server is missing")
    server = RedisServer(str(tmp_path))
    yield server
    server.stop()


def test_redis_channels_carry_what_the_storage_worker_reads(queue, redis_server, start_worker):
    import redis

    address = f"redis://:pass-of-redis@127.0.0.1:{redis_server.port}/0"
    with redis.Redis.from_url(address) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("evaluation:*")
        listener.get_message(timeout=PATIENCE)  # the subscription itself, not shown
        queue.push(GOOD, BAD)
        worker = start_worker(EVENT_BUS_URL=address)
        told = []
        until = time.monotonic() + PATIENCE
        while len(told) < 3 and time.monotonic() < until:
            if message := listener.get_message(timeout=1):
                told.append((message["channel"].decode(), json.loads(message["data"])))
        assert worker.stop() == 0
    assert [channel for channel, _ in told] == ["evaluation:running", "evaluation:completed", "evaluation:failed"]
    running, completed, failed = (data for _, data in told)
    assert running.keys() == {"eval_id", "executor_id", "container_id", "timeout", "started_at"}
    assert completed.keys() == {
        "eval_id", "status", "output", "error", "exit_code", "executor_id", "completed_at", "metadata",
    }  # fmt: skip
    assert (completed["eval_id"], completed["status"], completed["output"]) == ("good/1", "completed", "good\n")
    assert completed["metadata"]["engine"] == "docker"
    assert failed.keys() == {"eval_id", "error", "executor_id"}
    assert "pass-of-redis" not in "".join(worker.raw)
    written = [path.read_bytes() for path in start_worker.state_dir.rglob("*") if path.is_file()]
    assert written
    assert b"pass-of-redis" not in b"".join(written)
