"""Copies of the sources that are built as an operator would."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from engine_under_test import DOCKER_HOST

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "build.sh", "pyproject.toml", "README.md", "CHANGELOG.md", "requirements.lock", "requirements-dev.lock",
    "crucible_worker", "docs", "deploy",
)  # fmt: skip


@pytest.fixture(scope="session")
def make():
    """Runs a command of build.sh in a copy of the sources; tools and downloads are shared with the working copy."""

    def make(folder: Path, *command: str, umask: str = "022", python: str = sys.executable, **environ: str) -> Path:
        folder.mkdir(parents=True)
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        done = subprocess.run(
            ["bash", "-c", f'umask {umask} && exec ./build.sh "$@"', "bash", *command],
            cwd=folder,
            env={**os.environ, "PYTHON": python, "BUILD_CACHE": str(ROOT / "build"), **environ},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return folder / "dist"

    return make


@pytest.fixture(scope="session")
def pyz(make, tmp_path_factory) -> Path:
    """What build.sh makes of this working copy."""
    return make(tmp_path_factory.mktemp("build") / "here") / "crucible-worker.pyz"


@pytest.fixture(scope="session")
def client(daemon):
    import docker

    api = docker.APIClient(base_url=daemon.url, version="auto", timeout=180)
    yield api
    api.close()


@pytest.fixture(scope="session")
def worker_image(client, pyz, tmp_path_factory):
    """What `image build --worker` makes, loaded by it."""
    name = f"crucible-test-worker-{uuid.uuid4().hex}:1"
    environment = {"HOME": str(tmp_path_factory.mktemp("home")), "DOCKER_HOST": DOCKER_HOST, "PATH": os.defpath}
    command = [sys.executable, "-I", str(pyz), "image", "build", "--worker", "--tag", name, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reference"] == name
    yield name
    client.remove_image(name, force=True)
