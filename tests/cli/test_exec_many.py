"""`exec` and `submit` with many files: which ones, how many at once, what a terminal and a pipe see, and Ctrl-C."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.cli import files, parallel
from crucible_worker.cli.main import main
from crucible_worker.cli.progress import Progress, clock, line_of, summary
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.errors import ExitError

COMMAND = (sys.executable, "-m", "crucible_worker")


@pytest.fixture
def worker_id() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def environment(worker_id, sandbox_image):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    own = {"HOSTNAME": worker_id, "PYTHONPATH": str(Path.cwd()), "CRUCIBLE_LANGUAGES": f"python={sandbox_image}"}
    return kept | own


@pytest.fixture
def call(environment):
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


# Files, folders, patterns.


def test_folders_and_patterns_stand_for_their_files_in_order(tmp_path, monkeypatch):
    for name in ("b.py", "a.py", "note.txt", "deep/er/c.py", ".hidden/d.py", "deep/.e.py"):
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.chdir(tmp_path)
    assert files.expand(["work"], ".py") == ["work/a.py", "work/b.py", "work/deep/er/c.py"]
    assert files.expand(["work/*.py", "-"], ".py") == ["work/a.py", "work/b.py", "-"]
    assert files.expand(["work/**/*.py"], ".py") == ["work/a.py", "work/b.py", "work/deep/er/c.py"]
    assert files.expand(["work/note.txt", "absent.py"], ".py") == ["work/note.txt", "absent.py"]
    (tmp_path / "odd[1].py").write_text("")
    assert files.expand(["odd[1].py"], ".py") == ["odd[1].py"], "a file of that very name is meant"
    for names, words in [
        (["work"], "no file that ends in .js"),
        (["*.rs"], "no file matches"),
        (["-", "-"], "only one"),
    ]:
        with pytest.raises(ExitError, match=words) as caught:
            files.expand(names, ".js")
        assert caught.value.code == 64


# Calls in threads.


def test_calls_run_side_by_side_and_no_more_than_asked_for():
    barrier, running, most = threading.Barrier(3), [], []

    def call(n: int) -> int:
        running.append(n)
        most.append(len(running))
        barrier.wait(10)
        running.remove(n)
        return n * n

    told: dict[int, int] = {}
    parallel.run_all([lambda n=n: call(n) for n in range(9)], 3, done=told.__setitem__)
    assert told == {n: n * n for n in range(9)}
    assert max(most) == 3


def test_one_at_a_time_they_come_in_order():
    told = []
    parallel.run_all([lambda n=n: n for n in range(50)], 1, done=lambda n, value: told.append((n, value)))
    assert told == [(n, n) for n in range(50)]


def test_what_a_call_raises_ends_the_whole():
    begun, stopped = [], threading.Event()

    def call(n: int) -> None:
        begun.append(n)
        if n == 1:
            raise ValueError("this one")
        if n == 0:
            stopped.wait(10)

    with pytest.raises(ValueError, match="this one"):
        parallel.run_all([lambda n=n: call(n) for n in range(100)], 2, done=lambda *_: None, stop=stopped.set, grace=10)
    assert stopped.is_set()
    assert len(begun) < 100


# The bar.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1e6), st.integers(0, 300))
def test_the_bar_fits_its_line(done, more, seconds, columns):
    assert len(line_of(done, done // 2, done + more, seconds, columns)) <= max(columns - 1, 0)


def test_the_bar_tells_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    now = [0.0]
    terminal = Terminal()
    progress = Progress(40, terminal, lambda: now[0])
    for n in range(10):
        now[0] += 0.5
        progress.count(completed=n > 0)
        progress.draw()
    shown = terminal.getvalue().rpartition("\r\x1b[K")[2]
    assert re.fullmatch(r"\[#{8,}\.{24,}\] 10/40  2\.0/s  0:15 left  1 not completed", shown)
    before = len(terminal.getvalue())
    progress.draw()
    assert len(terminal.getvalue()) == before, "not more often than an eye can see"
    progress.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_without_a_terminal_there_is_no_bar():
    stream = io.StringIO()
    progress = Progress(3, stream)
    progress.draw()
    progress.clear()
    assert stream.getvalue() == ""


def test_words_of_the_end():
    assert (clock(59.7), clock(3725)) == ("1:00", "1:02:05")
    told = summary(["completed", "failed", "completed"], 1.5)
    assert told == "3 evaluations: 2 completed, 1 failed; 1.5 s, 2.0/s"


# The commands.


@pytest.mark.engine
def test_exec_takes_a_folder_several_at_once(call, tmp_path, daemon, worker_id):
    for n in range(4):
        (tmp_path / f"{n}.py").write_text(f"import sys; print(input()); sys.exit({n == 2})")
    (tmp_path / "in.txt").write_text("said\n")
    arguments = ("exec", "--jobs", "4", "--stdin", str(tmp_path / "in.txt"), str(tmp_path))
    told = call(*arguments, "--json")
    results = {Path(r["id"]).name: r for r in map(json.loads, told.stdout.splitlines())}
    assert (told.returncode, told.stderr) == (1, "")
    assert sorted(results) == ["0.py", "1.py", "2.py", "3.py"]
    assert {r["stdout"] for r in results.values()} == {"said\n"}
    starts, ends = ([r[key] for r in results.values()] for key in ("started_at", "finished_at"))
    assert max(starts) < min(ends), "all four ran at the same time"
    assert not daemon.containers({"crucible.worker": worker_id})


@pytest.mark.engine
@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", 139), ("while True: pass", 124), ("", 0)],
)
def test_exec_exits_as_the_program_did(call, code, status):
    told = call("exec", "--reflect-exit-status", "--timeout", "1", "-", stdin=code)
    assert told.returncode == status, told.stderr


@pytest.mark.engine
def test_exec_passes_bytes_on_as_they_are(environment):
    code = b"import sys; sys.stdout.buffer.write(bytes(range(256)))"
    told = subprocess.run([*COMMAND, "exec", "-"], input=code, env=environment, capture_output=True, timeout=120)
    assert told.stdout == bytes(range(256))


@pytest.mark.engine
def test_a_terminal_sees_a_bar_and_ctrl_c_leaves_nothing(environment, tmp_path, daemon, worker_id):
    (tmp_path / "quick.py").write_text("")
    for n in range(3):
        (tmp_path / f"slow{n}.py").write_text("import time; time.sleep(1000)")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "exec", "--jobs", "2", str(tmp_path)], env=environment | {"COLUMNS": "100"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    os.close(terminal)
    seen, until = "", time.monotonic() + 60
    while "1/4" not in seen and time.monotonic() < until:
        if select.select([controller], [], [], 1)[0]:
            seen += os.read(controller, 4096).decode()
    assert re.search(r"\[#+\.+\] 1/4  \d\.\d/s  \d+:\d\d left", seen), seen
    process.send_signal(signal.SIGINT)
    with process:
        assert process.stdout.read().startswith(f"{tmp_path}/quick.py: completed (exited) in ")
        assert process.wait(60) == 130
    try:
        rest = os.read(controller, 65536).decode()
    except OSError:
        rest = ""
    os.close(controller)
    assert "Traceback" not in seen + rest
    assert not daemon.containers({"crucible.worker": worker_id})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["exec", "--reflect-exit-status", "{dir}"], "--reflect-exit-status takes one file, and these are 2"),
        (["exec", "--stdin", "-", "-"], "not both"),
        (["exec", "--jobs", "0", "-"], "at least 1"),
        (["submit", "--stdin", "-", "-"], "not both"),
        (["submit", "{dir}/*.js"], "no file matches"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_64(tmp_path, capsys, arguments, says):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("")
    assert main([text.replace("{dir}", str(tmp_path)) for text in arguments]) == 64
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err


def test_submit_takes_a_folder_and_several_requests_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("API_KEY", raising=False)
    for n in range(20):
        (tmp_path / f"{n:02}.py").write_text(str(n))
    with EmbeddedQueue() as queue:
        monkeypatch.setenv("QUEUE_SERVICE_URL", queue.url)
        assert main(["submit", str(tmp_path), "--jobs", "4"]) == 0
        ids = capsys.readouterr().out.split()
        assert len(set(ids)) == 20
        codes = {queue._store.claim().code for _ in range(20)}
    assert codes == {str(n) for n in range(20)}


def test_ctrl_c_ends_a_wait_at_once(tmp_path):
    (tmp_path / "a.py").write_text("")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with EmbeddedQueue() as queue:
        process = subprocess.Popen(
            [*COMMAND, "submit", "--wait", str(tmp_path / "a.py")],
            env=kept | {"PYTHONPATH": str(Path.cwd()), "QUEUE_SERVICE_URL": queue.url},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not queue._store.claim():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 130
