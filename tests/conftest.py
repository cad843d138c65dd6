"""What tests of several rooms share: a Docker Engine and the sandbox image, or a good reason for not having them."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from precondition import unavailable
from sandbox_bench import runtime, sandbox

from crucible_worker.engines.daemon import Daemon, DaemonGoneError

__all__ = ["runtime", "sandbox"]

SANDBOX_IMAGE = "crucible-sandbox:python"
# A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", type=float, default=0.0, metavar="HOURS", help="keep injecting faults for so long")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> float:
    """Hours to spend on what has no end; 0 in an ordinary run."""
    return float(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """The Docker Engine of this host."""
    found = Daemon(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    try:
        found.version()
    except DaemonGoneError as error:
        unavailable(f"no Docker Engine: {error}")
    yield found
    found.close()


@pytest.fixture(scope="session")
def sandbox_image(daemon: Daemon) -> str:
    """The name of a sandbox image that holds the Python of these tests, made where it is missing."""
    for name in (SANDBOX_IMAGE, f"{SANDBOX_IMAGE}-test"):
        image = daemon.image(name)
        if image is None:
            command = [sys.executable, "-m", "crucible_worker", "image", "build", "--tag", name]
            subprocess.run(command, check=True, timeout=300)
            return name
        if image["Config"]["Labels"].get("crucible.python") == platform.python_version():
            return name
    return unavailable(f"{name} holds another Python than this one; remove it")


@pytest.fixture(scope="session")
def engine_runtime(daemon: Daemon) -> Callable[[str], str]:
    """Takes the name of an OCI runtime that the daemon must know, and returns it."""
    known = daemon.info().get("Runtimes") or {}

    def runtime(name: str) -> str:
        return name if name in known else unavailable(f"the daemon has no runtime {name}")

    return runtime
