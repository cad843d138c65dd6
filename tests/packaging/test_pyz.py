"""The one file that is shipped: the same bytes wherever it is built, pure Python, and at home on every host."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pythons import of_this_host

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 3_000_000


NEW, OLD = of_this_host()


def start(python: str, pyz: Path, *argv: str, flags=("-I",), **environ: str) -> subprocess.CompletedProcess:
    """Run the .pyz in an environment with nothing but what is given."""
    command = [python, *flags, str(pyz), *argv]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="session")
def names(pyz) -> list[str]:
    """The paths in the archive."""
    with zipfile.ZipFile(pyz) as archive:
        return archive.namelist()


def test_is_the_same_elsewhere_under_another_umask_and_python(pyz, make, tmp_path):
    """A second builder gets the same sum: that is what makes the sum worth checking."""
    other = make(tmp_path / "another place", umask="077", python=NEW[-1]) / "crucible-worker.pyz"
    assert other.read_bytes() == pyz.read_bytes()


def test_sum_is_beside_it_and_right(pyz):
    """`sha256sum -c` works where both files lie."""
    subprocess.run(["sha256sum", "-c", "--quiet", f"{pyz.name}.sha256"], cwd=pyz.parent, check=True)


def test_is_pure_python(names):
    """No compiled code: one file serves every CPU and C library, on noexec mounts too."""
    assert [name for name in names if re.search(r"\.(so|pyd|dylib|dll|pyc)\b", name)] == []


def test_every_wheel_is_for_every_python_and_cpu(pyz, names):
    """What the wheels say of themselves: a CPU, a C library or a Python of their own would be in the tag."""
    wheels = [name for name in names if name.endswith(".dist-info/WHEEL")]
    with zipfile.ZipFile(pyz) as archive:
        tags = re.findall(r"^Tag: (.+)$", "\n".join(archive.read(name).decode() for name in wheels), re.MULTILINE)
    assert len(tags) >= len(wheels)
    assert {tag.partition("-")[2] for tag in tags} == {"none-any"}


def test_tells_nothing_of_the_builder(pyz, names):
    """No build path, no script with an interpreter's path, no time and no odd mode."""
    assert [n for n in names if n.endswith("direct_url.json") or "/bin/" in n] == []
    assert names == sorted(names)
    with zipfile.ZipFile(pyz) as archive:
        infos = archive.infolist()
        assert {(i.date_time, i.external_attr >> 16) for i in infos} == {((1980, 1, 1, 0, 0, 0), 0o100644)}
        assert str(ROOT).encode() not in b"".join(map(archive.read, names))


def test_every_file_belongs_to_a_locked_package(names):
    """Nothing is in it that requirements.lock does not name, except ourselves and the bootstrap."""
    locked = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    bundled = {
        m[1].replace("_", "-") for n in names if (m := re.match(r"site-packages/([\w.]+?)-[^/]*\.dist-info/", n))
    }
    assert bundled == locked | {"crucible-worker"}


def test_stays_within_its_budget(pyz):
    """It is copied by hand into air-gapped rooms."""
    assert pyz.stat().st_size < BUDGET
    assert os.access(pyz, os.X_OK)


@pytest.mark.parametrize("python", OLD)
def test_old_pythons_say_so(pyz, python, tmp_path):
    """One sentence, and nothing is unpacked first."""
    done = start(python, pyz, "version", SHIV_ROOT=str(tmp_path))
    assert done.returncode == 64
    assert re.fullmatch(r"crucible-worker needs Python 3\.11 or newer, and this is 3\.\d+\. .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_version_check_comes_first(pyz):
    """The same on a host without an old Python: the archive's first lines, told that they run on 3.6."""
    with zipfile.ZipFile(pyz) as archive:
        program = archive.read("__main__.py").decode()
    pretence = f"import sys; sys.version_info = (3, 6, 0); exec({program!r})"
    done = subprocess.run([sys.executable, "-c", pretence], capture_output=True, text=True)
    assert done.returncode == 64
    assert "this is 3.6" in done.stderr


def test_runs_from_a_read_only_unpacked_folder(pyz, tmp_path):
    """An image unpacks it while it is built and then writes nowhere."""
    assert start(sys.executable, pyz, "version", SHIV_ROOT=str(tmp_path)).returncode == 0
    before = sorted(tmp_path.rglob("*"))
    for path in [tmp_path, *before]:
        path.chmod(0o555)
    try:
        assert start(sys.executable, pyz, "version", flags=("-I", "-B"), SHIV_ROOT=str(tmp_path)).returncode == 0
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        for path in [tmp_path, *before]:
            path.chmod(0o755)


@pytest.mark.parametrize("argv", [("version",), ("--help",), ("healthcheck", "--help")])
def test_small_commands_import_nothing_costly(pyz, argv, tmp_path):
    """A health check every few seconds must not load the Docker SDK each time."""
    done = start(sys.executable, pyz, *argv, flags=("-I", "-X", "importtime"), SHIV_ROOT=str(tmp_path))
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert imported & {"docker", "structlog", "redis", "requests", "prometheus_client", "asyncio"} == set()
