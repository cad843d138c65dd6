"""Images that are fetched from a real registry, and those that must not be used."""

import contextlib
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from precondition import unavailable

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import Fleet
from crucible_worker.engines.images import refusal
from crucible_worker.engines.runtimes import is_podman
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Task


@pytest.mark.parametrize(
    ("image", "allowed", "may"),
    [
        ("any:thing", (), True),
        ("registry.local/python:3", ("registry.local/*",), True),
        ("registry.local/python:3", ("other/*", "registry.local/python:*"), True),
        ("registry.local.evil/python:3", ("registry.local/*",), False),
        ("python:3", ("registry.local/*",), False),
        ("Python:3", ("python:3",), False),
        ("python@sha256:ab", ("python@sha256:*",), True),
    ],
)
def test_which_images_may_be_used(image, allowed, may):
    assert (refusal(image, allowed) is None) is may


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """HOST:PORT of a registry on this host, which any engine trusts there."""
    folder = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    configuration = folder / "config.yml"
    configuration.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: {address}\n"
        "log:\n  accesslog:\n    disabled: true\n"
    )
    try:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        unavailable("there is no docker-registry")
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
            break
        assert time.monotonic() < until
        time.sleep(0.05)
    yield address
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def pushed(registry, daemon, sandbox_image):
    """The sandbox image in that registry, and not on this host: its name there, and its digest."""
    import docker

    if is_podman(daemon.info()):
        unavailable("Podman pushes to no registry without TLS")
    client = docker.APIClient(base_url=daemon.url, version="auto")
    name = f"{registry}/evaluations/python"
    client.tag(sandbox_image, name, "1")
    said = [line for line in client.push(name, "1", stream=True, decode=True) if "aux" in line or "error" in line]
    client.remove_image(f"{name}:1")
    yield name, said[-1]["aux"]["Digest"]
    for image in client.images(name):
        for tag in [*(image["RepoTags"] or []), *(image["RepoDigests"] or [])]:
            with contextlib.suppress(docker.errors.APIError):
                client.remove_image(tag)
    client.close()


class Counting(Daemon):
    """Counts what it fetches."""

    pulls = 0

    def pull(self, name, seconds):
        Counting.pulls += 1
        super().pull(name, seconds)


@pytest.fixture
def evaluate(daemon, plain_runtime):
    """Runs a task in an image; more keywords are for the fleet."""
    made = []

    def run(image, code="print(6 * 7)", **given):
        labels = {"crucible.worker": f"test-{uuid.uuid4().hex[:12]}", "crucible.boot": "b"}
        fleet = Fleet(Counting(daemon.url), engines={"docker": plain_runtime}, languages={"python": Language(image)},
                      fallback=False, limits=Limits(), labels=labels, **given)  # fmt: skip
        made.append(fleet)
        return fleet.run("docker", Task("t", code), Limits(timeout_seconds=10), threading.Event())

    yield run
    for fleet in made:
        assert fleet.close(60)


def error_of(call, *args, **kwargs) -> TaskError:
    with pytest.raises(TaskError) as caught:
        call(*args, **kwargs)
    return caught.value


@pytest.mark.engine
def test_a_missing_image_is_fetched_only_where_that_is_wanted(evaluate, pushed, daemon):
    image = f"{pushed[0]}:1"
    error = error_of(evaluate, image)
    assert (error.reason, "is not on this host" in str(error)) == (Reason.IMAGE_MISSING, True)
    assert evaluate(image, pull=True).stdout.data == b"42\n"
    assert evaluate(image).stdout.data == b"42\n"
    daemon.remove_image(image)


@pytest.mark.engine
def test_an_image_pinned_to_its_digest_is_that_one(evaluate, pushed, daemon):
    name, digest = pushed
    run = evaluate(f"{name}@{digest}", pull=True)
    assert run.stdout.data == b"42\n"
    assert run.image == f"{name}@{digest}"
    daemon.remove_image(f"{name}@{digest}")
    other = f"{name}@sha256:{'0' * 64}"
    error = error_of(evaluate, other, pull=True)
    assert error.reason is Reason.IMAGE_MISSING
    assert other in str(error)


@pytest.mark.engine
def test_many_tasks_fetch_once(pushed, daemon, sandbox_image, plain_runtime):
    image = f"{pushed[0]}:1"
    Counting.pulls = 0
    fleet = Fleet(Counting(daemon.url), engines={"docker": plain_runtime}, languages={"python": Language(image)},
                  fallback=False, limits=Limits(), labels={"crucible.worker": "test-many"}, pull=True)  # fmt: skip

    def run(number: int) -> bytes:
        return fleet.run("docker", Task(f"t{number}", "print(1)"), Limits(), threading.Event()).stdout.data

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [b"1\n"] * 4
    assert fleet.close(60)
    assert Counting.pulls == 1
    daemon.remove_image(image)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("image", "words"),
    [("{registry}/none:such", "cannot be pulled"), ("127.0.0.1:9/none:such", "cannot be pulled"), ("UPPER/x:y", "")],
)
def test_what_cannot_be_fetched_says_why_in_one_line(evaluate, registry, image, words):
    error = error_of(evaluate, image.format(registry=registry), pull=True)
    assert error.reason in {Reason.IMAGE_MISSING, Reason.ENGINE_UNAVAILABLE}
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.engine
def test_an_image_that_is_not_allowed_is_refused_though_it_is_there(evaluate, sandbox_image):
    error = error_of(evaluate, sandbox_image, images_allowed=("registry.local/*",))
    assert (error.reason, str(error)) == (
        Reason.IMAGE_REFUSED,
        f"image {sandbox_image} is not among the allowed ones (registry.local/*)",
    )
    assert evaluate(sandbox_image, images_allowed=("registry.local/*", "crucible-*")).verdict.exit_code == 0
