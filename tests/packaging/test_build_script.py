"""build.sh itself: its help, its refusals, and what it asks of a host."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build_sh(*argv: str, **environ: str) -> subprocess.CompletedProcess:
    """Run build.sh in the working copy."""
    return subprocess.run(
        ["./build.sh", *argv], cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=300
    )


def test_help_names_every_command():
    """The first thing a newcomer types."""
    done = build_sh("--help")
    assert done.returncode == 0
    for command in ("demo", "test", "lint", "lock", "--no-install", "Exit codes", "Examples"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (["frobnicate"], {}, "unknown command 'frobnicate'"),
        (["build", "superfluous"], {}, "takes no arguments"),
        ([], {"PYTHON": "/nowhere/python3"}, "PYTHON=/nowhere/python3 is not a Python of 3.11 or newer"),
    ],
)
def test_bad_usage_is_one_line(argv, environ, said):
    """Exit 64 and a sentence."""
    done = build_sh(*argv, **environ)
    assert done.returncode == 64
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_demo_without_an_engine_refuses_to_install(tmp_path):
    """`--no-install` changes nothing on the host and exits 69 with the reason."""
    done = build_sh("--no-install", "demo", DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    assert done.returncode == 69
    assert "no Docker Engine answers" in done.stderr.splitlines()[-1]


def test_locked_packages_name_no_host():
    """Where packages come from is the machine's business: mirrors and air-gapped rooms use the same lock."""
    for name in ("requirements.lock", "requirements-dev.lock", "build.sh"):
        assert "://" not in (ROOT / name).read_text().replace("unix://", "")


def test_bundle_has_one_hash_for_each_package():
    """One hash, that of the none-any wheel: a compiled one cannot slip in."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert sum("--hash=sha256:" in line for line in lines) == sum("==" in line for line in lines) > 0
    assert any(line.startswith("async-timeout==") for line in lines)
