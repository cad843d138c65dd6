"""What tests of several rooms share: a Docker Engine and the sandbox image, or a good reason for not having them."""

import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from engine_under_test import DOCKER_HOST, PLAIN_RUNTIME
from precondition import unavailable
from sandbox_bench import runtime, sandbox

from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.runtimes import unfit

__all__ = ["runtime", "sandbox"]

SANDBOX_IMAGE = "crucible-sandbox:python"
# A shell starts what runs in its background deaf to Ctrl-C and Ctrl-\, nohup to the end of a session; children inherit
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", type=float, default=0.0, metavar="HOURS", help="keep injecting faults for so long")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> float:
    """Hours to spend on what has no end; 0 in an ordinary run."""
    return float(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """The Docker Engine of this host, or the one that DOCKER_HOST names."""
    found = Daemon(DOCKER_HOST)
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
    """Takes the name of an OCI runtime that must run sandboxes here, and returns it; runc may be another plain one."""
    info = daemon.info()

    def runtime(name: str) -> str:
        name = PLAIN_RUNTIME if name == "runc" else name
        trouble = unfit(info, name)
        return unavailable(trouble) if trouble else name

    return runtime


@pytest.fixture(scope="session")
def plain_runtime(engine_runtime: Callable[[str], str]) -> str:
    """One that runs code on the host's own kernel."""
    return engine_runtime("runc")
