"""The worker in a container without a shell: it settles tasks through the host's engine, and is healthy."""

import shutil
import socket
import subprocess
import sys
import tarfile
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from watching import ask, until

from crucible_worker import __version__
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.engines import image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(client, tmp_path_factory):
    """An image with Debian's Python, or ours, at /usr/bin/python3, and no shell: as the distroless ones are."""
    folder = tmp_path_factory.mktemp("base")
    python = next((path for path in ("/usr/bin/python3",) if Path(path).exists()), image.default_python())
    image.write_file(folder / "image.tar", "crucible-test-base:1", python)
    with tarfile.open(folder / "image.tar") as archive:
        archive.extract("layer.tar", folder, filter="data")
    with tarfile.open(folder / "layer.tar", "a") as layer:
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "/usr/local/bin/python3"
        layer.addfile(link)
    name, tag = f"crucible-test-base-{uuid.uuid4().hex}", "1"
    client.import_image_from_file(str(folder / "layer.tar"), name, tag)
    yield f"{name}:{tag}"
    client.remove_image(f"{name}:{tag}", force=True)


@pytest.fixture(scope="module")
def by_dockerfile(client, base, pyz, tmp_path_factory):
    context = tmp_path_factory.mktemp("context")
    (context / "dist").mkdir()
    shutil.copy(ROOT / "Dockerfile", context)
    shutil.copy(pyz, context / "dist")
    name = f"crucible-test-worker-{uuid.uuid4().hex}"
    arguments = {"BASE": base, "VERSION": __version__}
    said = list(client.build(str(context), name, rm=True, network_mode="none", buildargs=arguments, decode=True))
    assert not [line for line in said if "error" in line], said[-5:]
    yield name
    client.remove_image(name, force=True)


@pytest.fixture
def queue():
    made = EmbeddedQueue(":memory:", "127.0.0.1:0")
    made.start()
    yield made
    made.stop()


@pytest.mark.engine
@pytest.mark.parametrize("how", ["by_dockerfile", "worker_image"])
def test_a_container_of_it_settles_tasks_and_is_healthy(client, daemon, queue, request, how):
    name = request.getfixturevalue(how)
    about = client.inspect_image(name)["Config"]
    assert about["User"] == "65532:65532"
    assert about["Labels"]["org.opencontainers.image.version"] == __version__
    assert not about.get("Volumes")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = daemon.url.removeprefix("unix://")
    worker = f"test-{uuid.uuid4().hex[:12]}"
    container = client.create_container(
        name,
        environment={
            "QUEUE_SERVICE_URL": queue.url, "EVENT_BUS_URL": "none", "CRUCIBLE_HEALTH_ADDRESS": address,
            "CRUCIBLE_STATE_DIR": "memory", "CRUCIBLE_ENGINES": "docker=runc", "HOSTNAME": worker,
            "CRUCIBLE_POLL_WAIT": "1",
        },
        healthcheck={"interval": 1_000_000_000},
        volumes=["/var/run/docker.sock"],
        host_config=client.create_host_config(
            network_mode="host", read_only=True, cap_drop=["ALL"], security_opt=["no-new-privileges"],
            binds=[f"{path}:/var/run/docker.sock"], group_add=[str(Path(path).stat().st_gid)],
        ),
    )["Id"]  # fmt: skip
    try:
        assert not has_shell(client, container)
        client.start(container)
        for number in (1, 2):
            ask(f"{queue.url}/tasks", {"eval_id": str(number), "code": f"print({number} * 21)", "timeout": 20})
        until(lambda: ask(f"{queue.url}/tasks/2")["status"] == "completed", logs(client, container))
        assert ask(f"{queue.url}/tasks/2/result")["stdout"] == "42\n"
        until(lambda: health(client, container) == "healthy", logs(client, container))
        client.stop(container, timeout=30)
        assert client.wait(container)["StatusCode"] == 0, logs(client, container)
        assert daemon.containers({"crucible.worker": worker}) == []
    finally:
        client.remove_container(container, force=True, v=True)


def health(client, container: str) -> str:
    return client.inspect_container(container)["State"]["Health"]["Status"]


def logs(client, container: str) -> str:
    return client.logs(container).decode()[-2000:]


def has_shell(client, container: str) -> bool:
    import docker.errors

    for path in ("/bin/sh", "/bin/bash", "/usr/bin/dash", "/bin/busybox", "/usr/bin/apt"):
        with suppress(docker.errors.NotFound):
            client.get_archive(container, path)
            return True
    return False


def test_only_the_archive_can_pack_itself(tmp_path):
    """From a source tree there is nothing to put in."""
    command = [sys.executable, "-m", "crucible_worker", "image", "build", "--worker", "--output", f"{tmp_path}/x.tar"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert "packs the .pyz that runs it" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
