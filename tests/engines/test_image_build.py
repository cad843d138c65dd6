"""The image that is made from the host's Python: same bytes, nothing superfluous, and all of the standard library."""

import gc
import json
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import pytest
from engine_under_test import DOCKER_HOST

from crucible_worker.cli.main import main
from crucible_worker.engines import image
from crucible_worker.engines.elf import ElfFile
from crucible_worker.errors import ExitError

TAG = "crucible-sandbox:test-image-build"
BUDGET = 60_000_000

# Imports one module after another, each in the same process, and prints what failed.
IMPORT_ALL = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
failed = {}
for name in sorted(json.loads(sys.argv[1])):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
print("\\n" + json.dumps(failed))
"""

DROPPED = {"antigravity", "ensurepip", "idlelib", "lib2to3", "this", "tkinter", "turtle", "turtledemo", "_tkinter"}

HARD_USES = """
import bz2, ctypes, decimal, hashlib, lzma, multiprocessing, pathlib, sqlite3, ssl, sys, threading, time, zlib, zoneinfo
assert sqlite3.connect(":memory:").execute("select 6*7").fetchone() == (42,)
assert hashlib.sha3_256(b"").hexdigest() and hashlib.new("sha512", b"")
ssl.create_default_context()
assert ctypes.CDLL(None).getpid() > 0
assert lzma.decompress(lzma.compress(b"x")) == bz2.decompress(bz2.compress(b"x")) == b"x"
assert str(zoneinfo.ZoneInfo("Europe/Berlin"))
assert pathlib.Path.home() == pathlib.Path("/sandbox")
libc = ctypes.CDLL(None)
threading.Thread(target=lambda: libc.pthread_exit(None), daemon=True).start()
time.sleep(0.2)
assert not pathlib.Path("/bin/sh").exists()
assert sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8"
print("done")
"""


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """An image of the running Python, as a file."""
    path = tmp_path_factory.mktemp("image") / "image.tar"
    image.write_file(path, TAG, image.default_python())
    return path


@pytest.fixture(scope="session")
def layer(archive):
    """The members of the image's layer."""
    with tarfile.open(archive) as outer, tarfile.open(fileobj=outer.extractfile("layer.tar")) as inner:
        return inner.getmembers()


@pytest.fixture(scope="session")
def client():
    """The Docker Engine of this host."""
    import docker

    api = docker.APIClient(version="auto", base_url=DOCKER_HOST)
    yield api
    api.close()


@pytest.fixture(scope="session")
def loaded(client, archive):
    """The image in the Docker Engine, gone afterwards."""
    from crucible_worker.engines.image_store import ImageStore

    with ImageStore(DOCKER_HOST) as store, archive.open("rb") as file:
        yield store.load(file, TAG)
    client.remove_image(TAG, force=True)


def other_pythons() -> list[str]:
    """Interpreters that a host may have beside the running one."""
    candidates = [Path("/usr/bin/python3"), *sorted(Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python3"))]
    wanted = "import sys; sys.exit(sys.version_info < (3, 11))"
    usable = [str(path) for path in candidates if path.exists() and not subprocess.run([path, "-c", wanted]).returncode]
    return [usable[0], usable[-1]] if len(usable) > 1 else usable or [sys.executable]


def run(client, reference, runtime, *argv) -> tuple[int, str]:
    """Exit code and output of one container, under what matters of the sandbox's policy."""
    host = client.create_host_config(
        network_mode="none", read_only=True, runtime=runtime, tmpfs={"/tmp": "", "/sandbox": "mode=1777"}
    )
    container = client.create_container(reference, list(argv), user="65534:65534", host_config=host)["Id"]
    try:
        client.start(container)
        code = client.wait(container, timeout=50)["StatusCode"]
        return code, client.logs(container).decode()
    finally:
        client.remove_container(container, v=True, force=True)


def importable(python: str) -> list[str]:
    """The public and private standard modules that `python` imports on this host."""
    listing = "import sys; print(*sorted(sys.stdlib_module_names))"
    names = subprocess.run([python, "-I", "-c", listing], capture_output=True, text=True, check=True).stdout.split()
    names = [name for name in names if name not in DROPPED]
    program = IMPORT_ALL.replace("sys.argv[1]", repr(json.dumps(names)))
    done = subprocess.run([python, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    return sorted(set(names) - set(json.loads(done.stdout.splitlines()[-1])))


def test_builds_the_same_bytes_again(archive, tmp_path):
    """Two builds from one Python are one file, so a second host can confirm the first."""
    again = tmp_path / "again.tar"
    image.write_file(again, TAG, image.default_python())
    assert again.read_bytes() == archive.read_bytes()


def test_stays_within_its_budget(archive):
    """An image for every host must be quick to make, move and load."""
    assert archive.stat().st_size < BUDGET


def test_holds_no_shell_and_no_set_id_file(layer):
    """The sandbox has one program: Python. Nothing in it changes the user."""
    programs = {member.name for member in layer if "/bin/" in f"/{member.name}"}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert programs == {f"usr/local/bin/{name}" for name in ("python", "python3", version)}
    assert [m.name for m in layer if m.isfile() and m.mode not in {0o644, 0o755}] == []
    assert [m.name for m in layer if m.isdir() and m.mode != 0o755] == ["tmp"]


def test_tells_nothing_of_the_host(layer):
    """Owner, time and order are the same everywhere; packages and tests stay outside."""
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in layer} == {(0, 0, "", "", 0)}
    names = [m.name for m in layer]
    assert names == sorted(names)
    unwanted = {"site-packages", "dist-packages", "test", "tests", "idlelib", "ensurepip", "sitecustomize.py"}
    assert [name for name in names if unwanted & set(name.split("/"))] == []


def test_every_module_is_compiled_beforehand(layer):
    """The root is read-only at run time: a missing .pyc would cost at every start."""
    names = {m.name for m in layer}
    sources = {name for name in names if name.endswith(".py") and "lib/python" in name}
    tag = sys.implementation.cache_tag
    missing = [s for s in sources if f"{Path(s).parent}/__pycache__/{Path(s).stem}.{tag}.pyc" not in names]
    assert sources
    assert missing == []


@pytest.mark.engine
@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_imports_whatever_the_host_imports(client, loaded, engine_runtime, runtime):
    """A program that runs on the host's Python finds the same standard library in the sandbox."""
    names = json.dumps(importable(image.default_python()))
    code, output = run(client, TAG, engine_runtime(runtime), "python3", "-c", IMPORT_ALL, names)
    assert (code, json.loads(output.splitlines()[-1])) == (0, {})


@pytest.mark.engine
@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_libraries_behind_the_modules_work(client, loaded, engine_runtime, runtime):
    """Importing is not enough: OpenSSL, SQLite, threads that end early and time zones have files of their own."""
    assert run(client, TAG, engine_runtime(runtime), "python", "-c", HARD_USES) == (0, "done\n")


@pytest.mark.engine
@pytest.mark.parametrize("python", other_pythons())
def test_works_from_any_python_of_the_host(client, plain_runtime, tmp_path, python):
    """Debian's, a self-built or a shared-library Python: each becomes an image that runs."""
    from crucible_worker.engines.image_store import ImageStore

    tag, path = f"{TAG}-other", tmp_path / "other.tar"
    built = image.write_file(path, tag, python)
    with ImageStore(DOCKER_HOST) as store, path.open("rb") as file:
        assert store.load(file, tag) == built.image_id
    try:
        assert path.stat().st_size < BUDGET
        names = json.dumps(importable(python))
        code, output = run(client, tag, plain_runtime, "python3", "-c", IMPORT_ALL, names)
        assert (code, json.loads(output.splitlines()[-1])) == (0, {})
        assert run(client, tag, plain_runtime, "python", "-c", HARD_USES) == (0, "done\n")
    finally:
        client.remove_image(tag, force=True)


@pytest.mark.engine
def test_check_calls_it_fit(loaded, capsys):
    """`image check` looks at what the daemon has, and exits 0 when all is well."""
    assert main(["image", "check", "--image", TAG, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["fit"], report["problems"], report["notes"]) == (True, [], [])
    assert report["image_id"] == loaded


@pytest.mark.engine
def test_check_finds_what_is_missing_or_unfit(client, loaded, capsys):
    """An image that declares volumes would leave data behind; one that is not there is named with its remedy."""
    unfit = f"{TAG}-volumes"
    container = client.create_container(TAG, ["-"])["Id"]
    client.commit(container, *unfit.split(":"), changes=["VOLUME /data"])
    client.remove_container(container)
    try:
        assert main(["image", "check", "--image", unfit, "--image", "crucible-no-such:image"]) == 1
    finally:
        client.remove_image(unfit, force=True)
    output = capsys.readouterr().out
    assert "declares volumes (/data)" in output
    assert "'image build' makes it" in output


@pytest.mark.engine
def test_check_leaves_no_container(client, loaded):
    """Looking at the files takes a container, which is gone afterwards."""
    before = {c["Id"] for c in client.containers(all=True, filters={"ancestor": TAG})}
    assert main(["image", "check", "--image", TAG]) == 0
    assert {c["Id"] for c in client.containers(all=True, filters={"ancestor": TAG})} == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "--tag", "Bad Name"], 64, "bad image name"),
        (["build", "--python", "/nowhere/python3", "--output", "x.tar"], 64, "cannot be started"),
        (["build", "--python", "/bin/cat", "--output", "x.tar"], 64, "is not a Python of 3.11 or newer"),
        (["build", "--output", "/nowhere/x.tar"], 1, "cannot write /nowhere/x.tar"),
        (["build", "--output", "."], 1, "cannot write .: it is not a file."),
        (["build", "--output", "/dev/null"], 1, "cannot write /dev/null: it is not a file."),
        (["build", "--docker-host", "unix:///nowhere.sock"], 69, "no Docker Engine answers"),
        (["check", "--docker-host", "unix:///nowhere.sock"], 69, "no Docker Engine answers"),
        ([], 64, "build|check"),
    ],
)
def test_bad_input_is_one_line(arguments, code, said, capsys, monkeypatch, tmp_path):
    """Whatever is wrong, the operator reads one sentence and a documented exit code."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        # The SDK leaves a socket that could not connect to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        assert main(["image", *arguments]) == code
        gc.collect()
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "a:b", "crucible-sandbox:python", "host.example:5000/a/b:c", "localhost:5000/x"])
def test_names_keep_their_registry_and_tag(name):
    """A port is not a tag."""
    assert image.reference(name) == (name if ":" in name.rpartition("/")[2] else f"{name}:latest")


@pytest.mark.parametrize("name", ["", "A", "a:", ":b", "-a", "a b", "a@sha256:0", "a/"])
def test_bad_names_are_refused(name):
    """The daemon would refuse them later, and less clearly."""
    with pytest.raises(ExitError, match="bad image name"):
        image.reference(name)


def test_elf_reading_refuses_what_is_none():
    """A script or a damaged library is named as such, not misread."""
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(20)):
        with pytest.raises(ValueError, match="ELF"):
            ElfFile(data)
