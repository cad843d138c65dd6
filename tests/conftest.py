"""What tests of several rooms share: a Docker Engine and the sandbox image, or a good reason for not having them."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from crucible_worker.engines.daemon import Daemon, DaemonGoneError

SANDBOX_IMAGE = "crucible-sandbox:python"


def unavailable(reason: str) -> None:
    """Skip what cannot be tested on this host; where CI promises a whole host, that is a failure."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason)
    pytest.skip(reason)


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
    """The name of the sandbox image, made where it is missing."""
    if daemon.image(SANDBOX_IMAGE) is None:
        subprocess.run([sys.executable, "-m", "crucible_worker", "image", "build"], check=True, timeout=300)
    return SANDBOX_IMAGE


@pytest.fixture(scope="session")
def runtimes(daemon: Daemon) -> frozenset[str]:
    """The OCI runtimes that the daemon knows."""
    return frozenset(daemon.info().get("Runtimes") or {})
