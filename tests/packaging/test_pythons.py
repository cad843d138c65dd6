"""The one file on every Python that can be had here: it evaluates, and it serves, from what it unpacks for itself."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pythons import of_debian_sid, of_this_host
from worker_process import WorkerProcess, clean_environment

from crucible_worker.embedded.server import EmbeddedQueue

NEW, _ = of_this_host()
CODE = "import sys; print('%d.%d' % sys.version_info[:2])"

pytestmark = pytest.mark.engine


def outcome(python: tuple[str, ...], pyz: Path, *argv: str, **environ: str) -> str:
    """What a command prints that succeeds and has nothing to complain about."""
    command = [*python, "-I", "-W", "error", str(pyz), *argv]
    done = subprocess.run(command, env=clean_environment() | environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@contextmanager
def worker_on(python: tuple[str, ...], pyz: Path, environ: dict[str, str]) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(environ, ("-I", "-W", "error", str(pyz)), python)
    try:
        yield worker
    finally:
        worker.discard()


def evaluates_and_serves(python: tuple[str, ...], pyz: Path, folder: Path, image: str) -> str:
    """An evaluation by `exec`, and one by `run` from a queue. Returns the version of Python that ran the code."""
    task = folder / "task.py"
    task.write_text(CODE)
    environ = {"SHIV_ROOT": str(folder / "root"), "CRUCIBLE_LANGUAGES": f"python={image}"}
    assert outcome(python, pyz, "version", **environ).startswith("crucible-worker ")
    result = json.loads(outcome(python, pyz, "exec", "--json", str(task), **environ))
    assert result["reason"] == "exited"
    with EmbeddedQueue(":memory:", "127.0.0.1:0") as queue:
        own = {
            "QUEUE_SERVICE_URL": f"http://127.0.0.1:{queue.port}", "EVENT_BUS_URL": "none", "CRUCIBLE_WARM": "0",
            "CRUCIBLE_STATE_DIR": str(folder / "state"), "CRUCIBLE_HEALTH_ADDRESS": "127.0.0.1:0",
            "CRUCIBLE_ENGINES": "docker=runc", "CRUCIBLE_POLL_WAIT": "0", "HOSTNAME": f"test-{uuid.uuid4().hex}",
        }  # fmt: skip
        with worker_on(python, pyz, environ | own) as worker:
            assert worker.ready().get("/health")[0] == 200
            outcome(python, pyz, "submit", "--wait", "--queue-url", own["QUEUE_SERVICE_URL"], str(task), **environ)
            assert worker.stop() == 0
    return result["stdout"].strip()


@pytest.mark.parametrize("python", NEW)
def test_it_works_on_every_python_of_this_host(pyz, python, plain_runtime, sandbox_image, tmp_path):
    evaluates_and_serves((python,), pyz, tmp_path, sandbox_image)


def test_it_works_on_debians_newest_and_in_an_image_of_them(pyz, daemon, plain_runtime, tmp_path):
    tried = []
    for number, python in enumerate(of_debian_sid()):
        folder, image = tmp_path / str(number), f"crucible-test-{uuid.uuid4().hex}:1"
        folder.mkdir()
        outcome(python, pyz, "image", "build", "--tag", image, SHIV_ROOT=str(folder / "root"))
        try:
            tried.append(evaluates_and_serves(python, pyz, folder, image))
        finally:
            daemon.remove_image(image)
        assert python[-1].endswith(tried[-1])
    assert tried
