"""How the one file starts: where it may unpack itself, and where it must not; and a health check without unpacking."""

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_worker import launch
from crucible_worker.observe.server import HealthReport, HealthServer
from crucible_worker.settings import Settings
from crucible_worker.unpack import UNUSED_DAYS, foreign

STRANGER = 12345
WELL = HealthReport(ok=True, ready=True)
ILL = HealthReport(ok=False, ready=False, reasons=["polling has stalled"])


def start(pyz: Path, *argv: str, before: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess:
    command = [*before, sys.executable, "-I", str(pyz), *argv]
    return subprocess.run(command, cwd="/proc", env=environ, capture_output=True, text=True, timeout=60)


def name_of(pyz: Path, tmp_path: Path) -> str:
    """What the archive's folder is called, wherever it is."""
    root = tmp_path / "elsewhere"
    assert start(pyz, "version", SHIV_ROOT=str(root)).returncode == 0
    (name,) = (path.name for path in root.iterdir() if not path.name.endswith("_lock"))
    return name


def in_mounts(script: str) -> tuple[str, ...]:
    """What runs a command where `script` has changed the mounts, for it alone."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh")


# --- where it unpacks ------------------------------------------------------------------------------------------------


def test_what_cannot_be_unpacked_at_home_is_unpacked_in_tmp(pyz, tmp_path):
    done = start(pyz, "version", HOME="/proc", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / f"crucible-worker-{os.geteuid()}"
    assert any(path.is_dir() for path in folder.iterdir())


def test_tmp_may_be_noexec(pyz, tmp_path):
    """Nothing of it is mapped as code."""
    mount = in_mounts(f"mount -t tmpfs -o noexec,nosuid,nodev tmpfs {tmp_path}")
    done = start(pyz, "exec", "--help", before=mount, HOME="/proc", TMPDIR=str(tmp_path), PATH=os.environ["PATH"])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_host_where_nothing_can_be_written_runs_it_packed(pyz, daemon, tmp_path):
    """Not even a temporary file: an evaluation all the same."""
    task = tmp_path / "task.py"
    task.write_text("print(6 * 7)")
    folders = [folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if Path(folder).is_dir()]
    mount = in_mounts("\n".join(f"mount --bind {f} {f}; mount -o remount,bind,ro {f}" for f in folders))
    kept = {name: value for name, value in os.environ.items() if name.startswith(("DOCKER_", "CRUCIBLE_", "PATH"))}
    done = start(pyz, "exec", str(task), before=mount, HOME="/proc", **kept)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_a_chosen_folder_that_cannot_be_written_is_named(pyz):
    done = start(pyz, "version", SHIV_ROOT="/proc/nowhere")
    assert done.returncode == 64
    assert re.fullmatch(r"crucible-worker cannot unpack itself in /proc/nowhere: .*SHIV_ROOT.*\n", done.stderr)


def test_twenty_at_once_unpack_it_once(pyz, tmp_path):
    command = [sys.executable, "-I", str(pyz), "version"]
    environ = {"SHIV_ROOT": str(tmp_path / "root")}
    running = [subprocess.Popen(command, env=environ, stdout=-1, stderr=-1) for _ in range(20)]
    assert [process.communicate(timeout=60)[1] for process in running] == [b""] * 20
    assert [process.returncode for process in running] == [0] * 20
    assert len([path for path in (tmp_path / "root").iterdir() if path.is_dir()]) == 1


def test_what_was_cut_off_is_unpacked_again(pyz, tmp_path):
    """As kill -9 leaves it: some files whole, one cut, the rest missing, under the name of what is not done."""
    root = tmp_path / "root"
    name = name_of(pyz, tmp_path)
    half = root / f"{name}.tmp" / "site-packages" / "crucible_worker"
    half.mkdir(parents=True)
    (half / "__init__.py").write_text('"""Cut')
    done = start(pyz, "version", SHIV_ROOT=str(root))
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_else_may_write_what_is_unpacked_whatever_the_mask(pyz, tmp_path):
    done = start(pyz, "version", before=("sh", "-c", 'umask 0; exec "$@"', "sh"), SHIV_ROOT=str(tmp_path / "root"))
    assert done.returncode == 0
    assert [path for path in (tmp_path / "root").rglob("*") if path.stat().st_mode & 0o022] == []


# --- where it does not -----------------------------------------------------------------------------------------------


def planted(folder: Path) -> None:
    """Code of another user, where ours would be."""
    package = folder / "site-packages" / "crucible_worker"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('planted')")
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, STRANGER, STRANGER)


def stranger_has_made_it(root: Path, name: str) -> str:
    planted(root / name)
    return f"{root / name} belongs to uid {STRANGER}"


def it_is_a_link(root: Path, name: str) -> str:
    planted(root.parent / "theirs")
    (root / name).symlink_to(root.parent / "theirs")
    return f"{root / name} is a link"


def its_parent_is_a_strangers(root: Path, name: str) -> str:
    os.chown(root, STRANGER, STRANGER)
    return f"{root} belongs to uid {STRANGER}"


def its_parent_is_a_strangers_link(root: Path, name: str) -> str:
    root.rmdir()
    (root.parent / "theirs").mkdir()
    root.symlink_to(root.parent / "theirs")
    os.lchown(root, STRANGER, STRANGER)
    return f"{root} belongs to uid {STRANGER}"


def its_parent_is_everybodys(root: Path, name: str) -> str:
    root.chmod(0o1777)
    return f"{root} can be written by others"


def everybody_may_rename_its_parent(root: Path, name: str) -> str:
    root.parent.chmod(0o777)
    return f"{root.parent} can be written by others"


@pytest.mark.parametrize(
    "plant",
    [
        stranger_has_made_it,
        it_is_a_link,
        its_parent_is_a_strangers,
        its_parent_is_a_strangers_link,
        its_parent_is_everybodys,
        everybody_may_rename_its_parent,
    ],
    ids=lambda plant: plant.__name__,
)
def test_code_that_another_user_could_plant_is_not_run(pyz, tmp_path, plant):
    root = tmp_path / "open" / "root"
    root.mkdir(parents=True)
    fault = plant(root, name_of(pyz, tmp_path))
    done = start(pyz, "version", SHIV_ROOT=str(root))
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.startswith(f"crucible-worker does not unpack itself in {root}: {fault}. Set SHIV_ROOT to ")
    assert done.stderr.count("\n") == 1


def test_a_folder_in_tmp_is_safe_and_tmp_itself_is_not(tmp_path):
    tmp_path.chmod(0o1777)
    (tmp_path / "mine").mkdir(mode=0o755)
    assert foreign(str(tmp_path / "mine" / "unpacked")) is None
    assert foreign(str(tmp_path / "unpacked")) == f"{tmp_path} can be written by others"


# --- what it leaves --------------------------------------------------------------------------------------------------


def test_what_no_process_has_used_for_a_week_is_removed(pyz, tmp_path):
    root = tmp_path / "root"
    prefix = name_of(pyz, tmp_path)[:-64]
    names = {kind: f"{prefix}{digit * 64}" for kind, digit in (("old", "a"), ("locked", "b"), ("recent", "c"))}
    names |= {"cut": f"{prefix}{'d' * 64}.tmp", "foreign": f"{prefix}backup"}
    for name in names.values():
        (root / name / "site-packages").mkdir(parents=True)
        if name != names["recent"]:
            long_ago = time.time() - (UNUSED_DAYS + 1) * 86400
            os.utime(root / name, (long_ago, long_ago))
    held = os.open(root / names["locked"], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        assert start(pyz, "version", SHIV_ROOT=str(root)).returncode == 0
    finally:
        os.close(held)
    left = {kind for kind, name in names.items() if (root / name).exists()}
    assert left == {"locked", "recent", "foreign"}


# --- a health check --------------------------------------------------------------------------------------------------


def serving(report: HealthReport) -> HealthServer:
    return HealthServer("127.0.0.1:0", health=lambda: report, status=dict, metrics=lambda: ("text/plain", b""))


def test_a_health_check_unpacks_nothing(pyz, tmp_path):
    root = tmp_path / "root"
    with serving(WELL) as running:
        address = f"127.0.0.1:{running.port}"
        done = start(pyz, "healthcheck", "--address", address, SHIV_ROOT=str(root))
    assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
    done = start(pyz, "healthcheck", CRUCIBLE_HEALTH_ADDRESS=address, SHIV_ROOT=str(root))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"unreachable: {address}: ")
    assert not root.exists()


def test_what_it_cannot_tell_is_left_to_the_command(pyz, tmp_path):
    with serving(ILL) as running:
        address = f"127.0.0.1:{running.port}"
        assert launch.quick_health(["healthcheck", "--address", address], {}) is None
        done = start(pyz, "healthcheck", "--address", address, SHIV_ROOT=str(tmp_path / "root"))
    assert (done.returncode, done.stdout) == (1, "unhealthy: polling has stalled\n")


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        ([], {}),
        (["version"], {}),
        (["healthcheck", "--help"], {}),
        (["healthcheck", "--timeout", "1"], {}),
        (["healthcheck", "--address", "localhost:8082"], {}),
        (["healthcheck", "--address", "[::1]:8082"], {}),
        (["healthcheck", "--address", "127.0.0.1:0"], {}),
        (["healthcheck", "--address", "127.0.0.1:x"], {}),
        (["healthcheck"], {"CRUCIBLE_CONFIG": "/etc/crucible.toml"}),
        (["healthcheck"], {"CRUCIBLE_HEALTH_CERT": "/etc/crucible.pem"}),
    ],
    ids=str,
)
def test_only_the_plain_question_is_answered_here(argv, environ):
    assert launch.quick_health(argv, environ) is None


def test_it_asks_where_the_worker_serves_by_default():
    assert Settings().health_address == launch._ADDRESS
