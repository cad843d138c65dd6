"""Real sandboxes on both runtimes: what the code may do, how it may end, and that nothing is left of it."""

import gc
import io
import json
import tarfile
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sandbox_bench import SLOWNESS

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.podman import is_podman
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Status

FOREVER = "import time\ntime.sleep(1000)"
FACTS = """
import ctypes, errno, json, os, resource, shutil, socket, stat, sys, tempfile, time

def outcome(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def write(directory):
    with open(os.path.join(directory, "x"), "w") as file:
        file.write("x")

def execute(directory):
    program = shutil.copy(os.path.realpath(sys.executable), directory)
    os.chmod(program, 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(program, [program, "-c", ""])
        except OSError as error:
            os._exit(error.errno)
    return errno.errorcode.get(os.waitstatus_to_exitcode(os.wait()[1]), "done")

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        s.connect(address)

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
    "capabilities": sorted({int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")}),
    "no_new_privs": ctypes.CDLL(None).prctl(39, 0, 0, 0, 0),
    "write": {d: outcome(lambda: write(d)) for d in ("/", "/etc", "/usr", "/sys", "/proc", "/sandbox", "/tmp")},
    "execute": {d: execute(d) for d in ("/sandbox", "/tmp", "/dev/shm")},
    "connect": [outcome(lambda: connect(socket.AF_INET, a)) for a in (("1.1.1.1", 53), ("172.17.0.1", 80))],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "hostname": socket.gethostname(),
    "setuid": outcome(lambda: os.setuid(0)),
    "disk": outcome(
        lambda: (os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(8, 0)), os.open("/tmp/disk", os.O_RDONLY))
    ),
    "block_devices": [d for d in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + d).st_mode)],
    "limits": {n: resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in ("CORE", "NOFILE", "FSIZE")},
    "environment": dict(os.environ),
    "directory": os.getcwd(),
    "files": sorted(os.listdir()),
    "temporary": tempfile.gettempdir(),
    "descriptors": [fd for fd in range(256) if outcome(lambda: os.fstat(fd)) == "done"],
    "parent": os.getppid(),
    "leads_its_session": os.getsid(0) == os.getpid(),
    "umask": os.umask(0),
}))
"""


def descriptors_open(daemon: Daemon) -> int:
    """Without the idle connections that the SDK keeps, at most a pool of them."""
    daemon.close()
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module", autouse=True)
def _nothing_leaks(daemon, sandbox_image, plain_runtime):
    """However many sandboxes these tests run, no thread and no descriptor of this process stays behind."""
    with undertaker(daemon) as ends:
        Sandboxes(daemon, plain_runtime, ends).run(
            Job("", "", Language(sandbox_image), Limits(), {}), threading.Event()
        )
    threads, descriptors = threading.active_count(), descriptors_open(daemon)
    yield
    assert threading.active_count() <= threads
    assert descriptors_open(daemon) <= descriptors


@contextmanager
def undertaker(daemon):
    made = Undertaker(daemon.close)
    yield made
    assert made.close(60)


def error_of(call, *args, **kwargs) -> TaskError:
    with pytest.raises(TaskError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_a_run_tells_all_there_is_to_know(sandbox):
    told = []
    run = sandbox("import sys\nprint('out')\nprint('err', file=sys.stderr)", on_start=told.append)
    assert (run.verdict.status, run.verdict.reason, run.verdict.exit_code) == (Status.COMPLETED, Reason.EXITED, 0)
    assert (run.stdout.data, run.stderr.data) == (b"out\n", b"err\n")
    assert (run.stdout.total_bytes, run.stderr.total_bytes, run.stdout.truncated) == (4, 4, False)
    assert (run.runtime, run.image, run.warm) == (sandbox.runtime, sandbox.image, False)
    assert run.image_id == sandbox.daemon.image(sandbox.image)["Id"]
    assert told == [run.container_id]
    assert set(run.phases_ms) == {"create", "start", "boot", "run"}
    assert all(ms >= 0 for ms in run.phases_ms.values())


def test_the_code_is_confined(sandbox):
    run = sandbox(FACTS)
    assert run.verdict.exit_code == 0, run.stderr.data.decode()
    facts = json.loads(run.stdout.data)
    assert set(facts["ids"]) == {65534}
    assert facts["capabilities"] == [0]
    assert facts["no_new_privs"] == 1
    refused = {"EROFS", "EACCES", "EPERM", "ENOENT"}
    assert {d for d, outcome in facts["write"].items() if outcome not in refused} == {"/sandbox", "/tmp"}
    assert set(facts["execute"].values()) == {"EACCES"}
    assert set(facts["connect"]) <= {"ENETUNREACH", "EHOSTUNREACH"}
    assert facts["interfaces"] in (["lo"], [])
    assert facts["hostname"] == "sandbox"
    assert facts["setuid"] == "EPERM"
    # gVisor's own kernel lets a node be made, of the few virtual devices it has: there is no disk behind it.
    assert facts["disk"] in ("EPERM", "ENXIO")
    assert facts["block_devices"] == []
    limits = Limits()
    assert facts["limits"] == {
        "CORE": [0, 0],
        "NOFILE": [limits.open_files] * 2,
        "FSIZE": [limits.file_bytes] * 2,
    }


def test_the_code_finds_no_surprises(sandbox):
    facts = json.loads(sandbox(FACTS).stdout.data)
    environment = facts["environment"]
    path = environment.pop("PATH")
    environment.pop("container", None)  # says podman there
    assert "/usr/local/bin" in path.split(":")
    assert environment == {"HOME": "/sandbox", "HOSTNAME": "sandbox", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    assert (facts["directory"], facts["temporary"]) == ("/sandbox", "/tmp")
    assert [name for name in facts["files"] if not name.startswith("python")] == ["main.py", "out", "x"]
    assert facts["descriptors"] == [0, 1, 2]
    assert (facts["parent"], facts["leads_its_session"], facts["umask"]) == (1, True, 0o022)


def test_disk_is_bounded(sandbox):
    fill = """
import errno
for name in ("/sandbox/x", "/tmp/x"):
    try:
        with open(name, "wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    small_disk, small_files = 4 << 20, 1 << 20
    assert sandbox(fill, tmp_bytes=small_disk).stdout.data == b"ENOSPC\n" * 2
    assert sandbox(fill, file_bytes=small_files).stdout.data == b"EFBIG\n" * 2


TALK = """
import pathlib, socket
print(socket.if_nameindex())
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
    print("talked")
try:
    print(socket.gethostbyname("localhost"))
except OSError:
    print("no such name")
resolver = pathlib.Path("/etc/resolv.conf")
print(resolver.exists() and "nameserver" in resolver.read_text())
"""


def test_a_sandbox_has_a_loopback_whoever_makes_it(sandbox):
    run = sandbox(TALK)
    assert run.stdout.data.startswith(b"[(1, 'lo')]\ntalked\n127.0.0.1\n"), run.stderr.data
    sandbox.leave_the_loopback_to_the_runtime()
    run = sandbox(TALK)
    name = b"127.0.0.1" if is_podman(sandbox.daemon.version()) else b"no such name"
    assert run.stdout.data == b"[(1, 'lo')]\ntalked\n" + name + b"\nFalse\n", run.stderr.data


def test_stdin_is_the_tasks_own_and_ends(sandbox):
    run = sandbox("import sys\nprint(input())\nprint(repr(sys.stdin.read()))", "first\nthe rest \0 ü")
    assert run.stdout.data.decode() == "first\n" + repr("the rest \0 ü") + "\n"
    run = sandbox("try:\n    input()\nexcept EOFError:\n    print('end')")
    assert run.stdout.data == b"end\n"


def test_any_bytes_are_output(sandbox):
    run = sandbox("import sys\nsys.stdout.buffer.write(bytes(range(256)) * 300)\nsys.stderr.buffer.write(b'\\xff')")
    assert run.stdout.data == bytes(range(256)) * 300
    assert run.stderr.data == b"\xff"


def test_code_past_its_time_is_killed_and_keeps_what_it_said(sandbox):
    """Spinning, sleeping, deaf to signals, or waiting for children that are: each ends, with its last whole line."""
    programs = {
        "spins": "while True: pass",
        "sleeps": FOREVER,
        "deaf": "import signal, time\nfor s in (15, 1, 2): signal.signal(s, signal.SIG_IGN)\ntime.sleep(1000)",
        "waits": "import os, time\nif os.fork() == 0: time.sleep(1000)\nos.wait()",
        "silent": "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)",
    }
    runs = sandbox.all(*("print('so far')\nprint('lost', end='')\n" + code for code in programs.values()),
                       timeout_seconds=1.0)  # fmt: skip
    for run in runs:
        assert (run.verdict.status, run.verdict.reason) == (Status.TIMEOUT, Reason.TIMEOUT)
        assert run.verdict.error == f"still running after {SLOWNESS:g} seconds"
        assert (run.verdict.exit_code, run.verdict.signal) == (None, None)
        assert run.stdout.data == b"so far\n"
        assert run.phases_ms["run"] >= 1000


def test_too_much_memory_is_told_as_such(sandbox):
    programs = (
        "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))",
        "x = b'x' * (1 << 30)",
        (
            "import os\nif os.fork() == 0:\n    x = b'x' * (1 << 30)\n"
            "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]) != 0)"
        ),
    )
    for run in sandbox.all(*(f"print('so far')\n{code}" for code in programs), memory_bytes=64 << 20):
        assert (run.verdict.status, run.verdict.reason) == (Status.FAILED, Reason.OUT_OF_MEMORY)
        assert run.verdict.error == "needed more than 67108864 bytes of memory"
        assert run.stdout.data == b"so far\n"


def test_memory_that_the_interpreter_refuses_is_an_ordinary_exception(sandbox):
    run = sandbox("try:\n    bytearray(1 << 60)\nexcept MemoryError:\n    print('caught')")
    assert (run.verdict.exit_code, run.stdout.data) == (0, b"caught\n")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_flood_is_stopped_and_does_not_fill_the_worker(sandbox, descriptor):
    limit = 64 << 20
    tracemalloc.start()
    try:
        run = sandbox(
            f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)",
            output_bytes=1 << 16, output_limit_bytes=limit,
        )  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (run.verdict.status, run.verdict.reason) == (Status.FAILED, Reason.OUTPUT_LIMIT)
    assert run.verdict.error == f"output went past {limit} bytes"
    stream = run.stdout if descriptor == 1 else run.stderr
    assert limit < stream.total_bytes < limit + (4 << 20)
    assert stream.truncated
    assert len(stream.data) < (1 << 16) + 100
    assert peak < limit / 4


def test_much_output_keeps_its_head_and_tail_and_its_count(sandbox):
    run = sandbox("for i in range(0, 100000, 100): print(f'{i}\\n' * 100, end='')", output_bytes=1000)
    assert run.verdict.exit_code == 0
    assert run.stdout.total_bytes == 100 * sum(len(f"{i}\n") for i in range(0, 100000, 100))
    assert run.stdout.truncated
    assert run.stdout.data.startswith(b"0\n0\n0\n")
    assert run.stdout.data.endswith(b"99900\n99900\n")
    assert b"\n[... %d bytes omitted ...]\n" % (run.stdout.total_bytes - 1000) in run.stdout.data


def test_a_line_is_out_as_soon_as_it_is_printed(sandbox):
    run = sandbox("import os\nprint('line')\nos._exit(0)")
    assert run.stdout.data == b"line\n"


def test_code_that_closes_its_streams_is_waited_for(sandbox):
    run = sandbox("import os, sys, time\nprint('a', flush=True)\nfor fd in (0, 1, 2): os.close(fd)\n"
                  "time.sleep(0.5)\nos._exit(3)")  # fmt: skip
    assert (run.verdict.exit_code, run.stdout.data) == (3, b"a\n")


def test_processes_left_behind_end_with_the_code(sandbox):
    """With its streams in hand, in another session, or without a parent: none of them delays the verdict."""
    programs = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])",
        (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n"
            "    os._exit(0)\nos.wait()"
        ),
        (
            "import os, signal, time\nif os.fork() == 0:\n    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
            "    while True: print('more', flush=True); time.sleep(0.01)"
        ),
    )
    for run in sandbox.all(*(f"{code}\nprint('done', flush=True)" for code in programs)):
        assert run.verdict.exit_code == 0
        assert b"done\n" in run.stdout.data


def test_orphans_are_reaped(sandbox):
    """Twice as many as may be at a time; in the end only the supervisor and the code are there."""
    run = sandbox("""
import os
for _ in range(60):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
    os.wait()
while sum(name.isdigit() for name in os.listdir("/proc")) > 2:
    pass
print("alone")
""", processes=32)  # fmt: skip
    assert run.stdout.data == b"alone\n", run.stderr.data


def test_a_fork_bomb_gets_a_verdict(sandbox):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    runs = sandbox.all(bomb, "import os\nwhile True: os.fork()", timeout_seconds=2.0)
    for run in runs:
        assert run.verdict.status in {Status.FAILED, Status.TIMEOUT}


def test_too_many_threads_are_an_ordinary_exception(sandbox):
    """With runc. gVisor's kernel has threads of its own making, bounded by memory."""
    code = """
import threading
stop = threading.Event()
try:
    for n in range(300):
        threading.Thread(target=stop.wait, daemon=True).start()
except RuntimeError as error:
    print(error)
"""
    run = sandbox(code, processes=16)
    assert run.verdict.exit_code == 0
    assert run.stdout.data == (b"can't start new thread\n" if sandbox.plain else b"")


def test_kill_minus_one_spares_who_judges(sandbox):
    """`kill -9 -1` ends all that the code has started; it lives on, as it would on a host, and is judged."""
    run = sandbox("import os, time\npid = os.fork()\nif pid == 0: time.sleep(1000)\nos.kill(-1, 9)\n"
                  "print(os.waitstatus_to_exitcode(os.wait()[1]))")  # fmt: skip
    assert (run.verdict.exit_code, run.stdout.data) == (0, b"-9\n")


def test_code_that_kills_the_supervisor_is_told_from_a_broken_engine(sandbox):
    run = sandbox("import os, time\nos.kill(1, 9)\ntime.sleep(0.5)\nprint('alive')")
    if sandbox.plain:
        assert (run.verdict.exit_code, run.stdout.data) == (0, b"alive\n")
    else:
        assert (run.verdict.reason, run.verdict.signal) == (Reason.SIGNALED, 9)


def test_catchable_signals_do_not_reach_the_supervisor(sandbox):
    run = sandbox("import os\nfor s in range(1, 32):\n    if s not in (9, 19): os.kill(1, s)\nprint('alive')")
    assert (run.verdict.exit_code, run.stdout.data) == (0, b"alive\n")


def test_a_stopped_program_runs_out_of_time(sandbox):
    run = sandbox("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", timeout_seconds=1.0)
    assert run.verdict.reason is Reason.TIMEOUT


def test_a_sandbox_that_somebody_pauses_gets_no_more_time(sandbox, docker_client):
    run = sandbox("print('so far')\n" + FOREVER, timeout_seconds=2.0, on_start=docker_client.pause)
    assert (run.verdict.reason, run.verdict.status) == (Reason.TIMEOUT, Status.TIMEOUT)


def test_a_sandbox_killed_from_outside_has_no_verdict(sandbox):
    error = error_of(sandbox, FOREVER, on_start=sandbox.daemon.kill)
    assert (error.reason, str(error)) == (
        Reason.ENGINE_ERROR,
        "the sandbox was killed from outside (exit code 137)",
    )


def test_a_sandbox_removed_from_outside_has_no_verdict(sandbox):
    error = error_of(sandbox, FOREVER, on_start=sandbox.daemon.remove)
    assert error.reason is Reason.ENGINE_ERROR


def test_cancelling_ends_a_run_at_once(sandbox):
    cancel = threading.Event()
    run = sandbox("print('so far', flush=True)\n" + FOREVER, cancel=cancel, on_start=lambda _: cancel.set())
    assert (run.verdict.status, run.verdict.reason) == (Status.ERROR, Reason.CANCELLED)
    assert run.phases_ms["run"] < 5000


def test_a_run_that_is_cancelled_beforehand_does_not_start(sandbox):
    cancel = threading.Event()
    cancel.set()
    started = []
    run = sandbox("print('never')", cancel=cancel, on_start=started.append)
    assert run.verdict.reason is Reason.CANCELLED


def test_sandboxes_side_by_side_do_not_mix(sandbox):
    runs = sandbox.all(*(f"print({n})" for n in range(6)))
    assert [run.stdout.data for run in runs] == [b"%d\n" % n for n in range(6)]
    assert len({run.container_id for run in runs}) == 6


def test_more_code_than_there_is_room_for_is_an_invalid_task(sandbox):
    error = error_of(sandbox, "#" * 600_000, tmp_bytes=1 << 20)
    assert error.reason is Reason.INVALID_TASK


def test_an_image_that_is_not_there(sandbox):
    error = error_of(sandbox, "", image="crucible-test/none:such")
    assert error.reason is Reason.IMAGE_MISSING
    assert "crucible-test/none:such is not on this host" in str(error)


@pytest.fixture(scope="module")
def docker_client(daemon):
    """The engine itself, for what a worker never does."""
    import docker

    client = docker.APIClient(base_url=daemon.url, version="auto")
    yield client
    client.close()


@pytest.fixture
def make_image(docker_client):
    """Makes images of one empty file each; gone in the end."""
    made = []

    def make(*changes: str) -> str:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("empty"))
        name = f"crucible-test:{uuid.uuid4().hex}"
        docker_client.import_image_from_data(archive.getvalue(), *name.split(":"), changes=list(changes))
        made.append(name)
        return name

    yield make
    for name in made:
        docker_client.remove_image(name)


def test_an_image_with_volumes_is_refused(sandbox, make_image):
    image = make_image("VOLUME /data")
    error = error_of(sandbox, "", image=image)
    assert (error.reason, str(error)) == (Reason.IMAGE_REFUSED, f"image {image} declares volumes (/data)")


def wait_for_the_end_of_shims(container: str) -> None:
    """Wait until containerd has nothing beside a container any more."""
    named, deadline = f"\0-id\0{container}".encode(), time.monotonic() + 20

    def commands() -> Iterator[bytes]:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                yield file.read_bytes()

    while left := [command for command in commands() if named in command]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_an_image_without_python_never_starts(sandbox, make_image, monkeypatch):
    made = []
    create = sandbox.daemon.create
    monkeypatch.setattr(sandbox.daemon, "create", lambda *given: made.append(create(*given)) or made[0])
    error = error_of(sandbox, "", image=make_image())
    assert error.reason is Reason.ENGINE_UNAVAILABLE
    assert "python3" in str(error)
    wait_for_the_end_of_shims(made[0])


def test_what_an_image_declares_does_not_weaken_the_sandbox(sandbox, docker_client):
    """Its user, program and directory are not those of the sandbox; its environment is, below ours."""
    # A directory by a file descriptor of runc's has been a way out to the host (CVE-2024-21626).
    workdir = "WORKDIR /proc/self/fd/7"
    changes = ["USER root", 'ENTRYPOINT ["/bin/none"]', 'CMD ["x"]', workdir, "EXPOSE 80", "ENV HOME=/root A=b"]
    base = docker_client.create_container(sandbox.image, command=["x"])["Id"]
    image = docker_client.commit(base, changes=changes)["Id"]
    docker_client.remove_container(base)
    try:
        run = sandbox("import os\nprint(os.getuid(), os.getcwd(), os.environ['HOME'], os.environ['A'])", image=image)
    finally:
        sandbox.undertaker.finish(60)
        docker_client.remove_image(image)
    assert run.stdout.data == b"65534 /sandbox /sandbox b\n"


@pytest.mark.engine
def test_a_runtime_that_is_not_there(daemon, sandbox_image):
    job = Job("", "", Language(sandbox_image), Limits(), {})
    with undertaker(daemon) as ends:
        error = error_of(Sandboxes(daemon, "no-such-runtime", ends).run, job, threading.Event())
    assert error.reason is Reason.ENGINE_UNAVAILABLE
    assert "no-such-runtime" in str(error)


# The SDK leaves its socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_daemon_that_is_not_there(tmp_path):
    job = Job("", "", Language("image"), Limits(), {})
    nowhere = f"unix://{tmp_path}/none.sock"
    away = Daemon(nowhere)
    with undertaker(away) as ends:
        error = error_of(Sandboxes(away, "runc", ends).run, job, threading.Event())
    assert error.reason is Reason.ENGINE_UNAVAILABLE
    said = f"the Docker Engine at {nowhere} does not answer (create a sandbox): [Errno 2] No such file or directory"
    assert str(error) == said
    del error
    gc.collect()


def test_an_end_that_is_not_as_it_was_told_is_noticed(sandbox):
    """A verdict does not wait for its sandbox; what the daemon says later must agree."""
    waiting = sandbox._sandboxes.prepare(Language(sandbox.image), Limits(), sandbox.labels)
    waiting.streams.close()
    sandbox._sandboxes._bury(waiting, 7)
    assert sandbox.troubles == ["its verdict says exit code 7, the daemon 0"]
    sandbox.troubles.clear()


def test_a_verdict_comes_before_its_sandbox_has_ended(sandbox):
    """Whatever the daemon still has to do: here it is not even asked for the exit code."""
    asked = []
    sandbox.undertaker.give = asked.append
    runs = [
        sandbox(code) for code in ("print('out')", "import sys\nsys.exit('err')", "import os\nos.kill(os.getpid(), 9)")
    ]
    assert [(run.verdict.exit_code, run.verdict.signal, run.stdout.data, run.stderr.data) for run in runs] == [
        (0, None, b"out\n", b""), (1, None, b"", b"err\n"), (None, 9, b"", b""),
    ]  # fmt: skip
    assert all("exit" not in run.phases_ms for run in runs)
    assert [job() for job in asked] == [None] * 3
