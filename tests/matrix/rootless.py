"""The recommended deployment, as docs/operations.md has it. Run by `./build.sh matrix rootless-docker` and
`rootless-podman`, each in a machine of its own; TEST_ENGINE says which."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import PATIENCE, PYZ, UNIT, documented, installed, result, show, start, submit, systemctl, until

HEADING = "### Rootless (recommended)"
BLOCK, SOCKET, RUNTIME = {
    "rootless-docker": (1, "unix:///run/user/970/docker.sock", "runc"),
    "rootless-podman": (2, "unix:///run/user/970/podman/podman.sock", "crun"),
}[os.environ["TEST_ENGINE"]]
# The sandbox's user 65534: 0 is the user's own id, and the others follow from 300000.
MAPPED_NOBODY = 300000 + 65534 - 1
ENVIRON = os.environ | {"DOCKER_HOST": SOCKET, "CRUCIBLE_ENGINES": f"docker={RUNTIME}"}


@pytest.fixture(scope="module", autouse=True)
def worker(tmp_path_factory) -> Iterator[int]:
    """The process of a worker that has been installed step by step."""
    steps = [documented(HEADING), documented(HEADING, BLOCK), documented("### systemd")]
    with installed(tmp_path_factory.mktemp("release"), *steps, environ=os.environ):
        yield start()


def users() -> Iterator[int]:
    """The user of each process of this host."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield folder.stat().st_uid


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYZ, "doctor", *arguments], env=ENVIRON, capture_output=True, text=True, timeout=PATIENCE)


def test_worker_engine_and_sandboxes_are_the_ordinary_users(worker):
    status = Path(f"/proc/{worker}/status").read_text()
    assert re.search(r"^Uid:\t970\t970\t970\t970$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    groups = re.search(r"^Groups:(.*)$", status, re.MULTILINE)[1].split()
    assert groups in ([], [re.search(r"^Gid:\t(\d+)", status, re.MULTILINE)[1]])
    waiting = submit("import time; time.sleep(10); print('done')")
    until("no process of the sandbox's user", lambda: MAPPED_NOBODY in set(users()))
    assert result(waiting)["stdout"] == "done\n"


def test_limits_hold():
    hog = result(submit("x = bytearray(1 << 30)"))
    assert (hog["status"], hog["reason"]) == ("failed", "out_of_memory")
    bomb = result(submit("import os, time\nfor _ in range(200): os.fork() or time.sleep(5) or os._exit(0)"))
    assert bomb["status"] == "failed"
    assert "Resource temporarily unavailable" in bomb["stderr"]
    fat = result(submit("open('/tmp/fat', 'wb').write(bytes(80 << 20))"))
    assert (fat["status"], fat["exit_code"]) == ("failed", 1)


def test_every_control_holds():
    found = doctor("--sandbox")
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert found.stdout.endswith("Every control holds.\n")


def test_a_stop_is_clean():
    systemctl("stop", UNIT)
    assert (show("ActiveState"), show("Result"), show("ExecMainStatus")) == ("inactive", "success", "0")
