"""What deploy/compose.yaml brings up with Docker Compose: a task goes in, its result and its event come out."""

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from debian import unpacked
from language_images import pack, program
from watching import PATIENCE, ask, until

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-this-test"
QUEUE, HEALTH = "http://127.0.0.1:8081", "http://127.0.0.1:8082/health"
# A name that no other worker here has.
WORKER = f"test-{uuid.uuid4().hex[:12]}"
# Health is asked for at once, and the worker's stop waits for no long poll.
IMPATIENT = f"""
services:
  queue: {{healthcheck: {{interval: 1s}}}}
  worker: {{healthcheck: {{interval: 1s}}, environment: {{CRUCIBLE_POLL_WAIT: "1", HOSTNAME: {WORKER}}}}}
"""
LABEL = "com.docker.compose.service"


@pytest.fixture(scope="module")
def redis_image(client):
    name = f"crucible-test-redis-{uuid.uuid4().hex}"
    client.import_image_from_data(pack({"/usr/bin/redis-server": program("redis-server").resolve()}), name, "1")
    yield f"{name}:1"
    client.remove_image(f"{name}:1", force=True)


@pytest.fixture
def compose(client, daemon, worker_image, redis_image, sandbox_image, tmp_path):
    shutil.copy(ROOT / "deploy/compose.yaml", tmp_path)
    (tmp_path / "api-key").write_text(KEY)
    (tmp_path / "api-key").chmod(0o644)
    (tmp_path / "impatient.yaml").write_text(IMPATIENT)
    socket = Path(daemon.url.removeprefix("unix://"))
    project = f"crucible-test-{uuid.uuid4().hex[:12]}"
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "DOCKER_HOST": daemon.url, "COMPOSE_PROJECT_NAME": project,
        "WORKER_IMAGE": worker_image, "REDIS_IMAGE": redis_image,
        "DOCKER_SOCKET": str(socket), "DOCKER_GID": str(socket.stat().st_gid),
    }  # fmt: skip
    plugin = unpacked("trixie", "docker-compose") / "usr/libexec/docker/cli-plugins/docker-compose"

    def compose(*arguments: str) -> str:
        command = [plugin, "-f", tmp_path / "compose.yaml", "-f", tmp_path / "impatient.yaml", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    yield compose
    compose("down", "--volumes", "--timeout", "20")


def services(client, compose) -> dict[str, Any]:
    """What the engine has to say about the container of each service."""
    found = map(client.inspect_container, compose("ps", "--all", "--quiet").split())
    return {about["Config"]["Labels"][LABEL]: about for about in found}


@pytest.mark.engine
def test_compose_brings_up_a_queue_a_worker_and_redis(client, daemon, compose):
    compose("up", "--detach", "--wait")
    (network,) = services(client, compose)["redis"]["NetworkSettings"]["Networks"].values()
    with redis.Redis(network["IPAddress"]) as bus, bus.pubsub() as subscriber:
        subscriber.subscribe("evaluation:completed")
        assert subscriber.get_message(timeout=5)["type"] == "subscribe"
        ask(f"{QUEUE}/tasks", {"eval_id": "composed", "code": "print(6 * 7)", "timeout": 20}, KEY)
        event = json.loads(subscriber.get_message(timeout=PATIENCE)["data"])
    assert (event["eval_id"], event["output"]) == ("composed", "42\n")
    until(lambda: ask(f"{QUEUE}/tasks/composed", key=KEY)["status"] == "completed", "the queue has no result")
    assert ask(f"{QUEUE}/tasks/composed/result", key=KEY)["stdout"] == "42\n"
    assert ask(HEALTH)["status"] == "healthy"
    compose("stop", "--timeout", "30")
    stopped = {name: about["State"]["ExitCode"] for name, about in services(client, compose).items()}
    assert stopped == {"queue": 0, "worker": 0, "redis": 0}
    assert daemon.containers({"crucible.worker": WORKER}) == []
