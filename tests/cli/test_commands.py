"""The command line as a user meets it: real processes, their two streams and their exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from crucible_worker.cli.main import COMMANDS

COMMAND = (sys.executable, "-m", "crucible_worker")
NOWHERE = "unix:///nonexistent/docker.sock"


@pytest.fixture
def worker_id() -> str:
    """A name for this test's sandboxes."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def environment(worker_id):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "PYTHONPATH") if name in os.environ}
    return kept | {"HOSTNAME": worker_id, "PYTHONPATH": str(Path.cwd())}


@pytest.fixture
def call(environment):
    """Run a command to its end."""

    def run(*arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], input=stdin, env=environment | settings,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def sandboxed(call, daemon, sandbox_image, worker_id):
    """Like `call`, with a Docker Engine; afterwards nothing of it may be left."""
    yield lambda *arguments, **more: call(*arguments, CRUCIBLE_LANGUAGES=f"python={sandbox_image}", **more)
    assert not daemon.containers({"crucible.worker": worker_id})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call, command):
    told = call(command, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(r"^Examples?:\n  .*crucible-worker\.pyz ", told.stdout, re.MULTILINE)
    assert command in ("version", "image") or "Exit codes" in told.stdout


def test_the_overview_lists_every_command(call):
    told = call("--help")
    assert told.returncode == 0
    assert all(f"  {command} " in told.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dance",), "unknown command 'dance'. Known: run, "),
        (("exec",), "the following arguments are required: FILE. See 'crucible-worker exec --help'."),
        (("exec", "--timeout", "0", "x.py"), "argument --timeout: expected a number above 0. See "),
        (("exec", "--timeout", "soon", "x.py"), "argument --timeout: expected a number above 0. See "),
        (("exec", "--timeout", "1e999", "x.py"), "argument --timeout: expected a number above 0. See "),
        (("exec", "/nonexistent/x.py"), "/nonexistent/x.py cannot be read"),
        (("exec", "--docker-host", "ssh://host", "-"), "expected unix:///PATH or tcp://HOST:PORT"),
        (("queue", "--address", "x"), "argument --address: expected ADDRESS:PORT, such as "),
        (("queue", "--address", ":99999"), "argument --address: expected ADDRESS:PORT, such as "),
        (("healthcheck", "--address", "x"), "argument --address: expected ADDRESS:PORT, such as "),
        (("journal",), "the following arguments are required: action. See "),
        (("exec", "--memory", "plenty", "-"), "memory"),
        (("run", "--no-such-flag"), "unrecognized arguments: --no-such-flag. See "),
    ],
)
def test_bad_usage_is_one_line_and_64(call, arguments, says):
    told = call(*arguments)
    assert (told.returncode, told.stdout) == (64, "")
    assert told.stderr.startswith("crucible-worker: ")
    assert says in told.stderr
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("--help",), ("exec", "--help"), ("version",), ("completion", "zsh")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line_and_1(environment, command, unbuffered):
    told = shell(environment | {"PYTHONUNBUFFERED": unbuffered}, '"$@" >/dev/full', *command)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "crucible-worker: the output cannot be written: No space left on device.\n"


@pytest.mark.engine
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_result_that_cannot_be_written_is_one_line_and_1(daemon, sandbox_image, environment, flags):
    environment |= {"CRUCIBLE_LANGUAGES": f"python={sandbox_image}"}
    told = shell(environment, 'echo "print(1)" | "$@" >/dev/full', "exec", *flags, "-")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "crucible-worker: the output cannot be written: No space left on device.\n"


def test_an_error_that_nobody_can_read_keeps_its_exit_code(environment):
    assert shell(environment, '"$@" 2>/dev/full', "dance").returncode == 64


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_taken_for_others(environment, closed):
    """The first file or socket that a process opens has the lowest free number."""
    program = "import os, sys; from crucible_worker.cli.main import main; main(['version']); sys.exit(os.dup(0) < 3)"
    command = ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-c", program]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")


def shell(environment, line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which `"$@"` is a command of ours."""
    command = ["bash", "-c", line, "bash", *COMMAND, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [("exec", "-"), ("demo",), ("image", "check")])
def test_without_a_docker_engine_it_is_one_line_and_69(call, command):
    told = call(*command, DOCKER_HOST=NOWHERE)
    assert told.returncode == 69
    assert told.stderr.count("\n") == 1
    assert NOWHERE in told.stderr
    assert "No such file or directory" in told.stderr


@pytest.mark.engine
def test_exec_shows_a_program_as_it_is(sandboxed):
    told = sandboxed("exec", "-", stdin="import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (told.returncode, told.stdout) == (1, "out\n")
    assert re.fullmatch(
        r"err\ncrucible-worker: failed \(exited_nonzero\) in [\d.]+ s on docker: exit code 3\n", told.stderr
    )


@pytest.mark.engine
def test_exec_of_several_files_gives_a_line_each(sandboxed, tmp_path):
    names = [tmp_path / "good.py", tmp_path / "bad.py"]
    for name, code in zip(names, ("print(1)", "1 / 0"), strict=True):
        name.write_text(code)
    told = sandboxed("exec", *map(str, names))
    assert told.returncode == 1
    good, bad = told.stdout.splitlines()
    assert good.startswith(f"{names[0]}: completed (exited) in ")
    assert bad.startswith(f"{names[1]}: failed (exited_nonzero) in ")


@pytest.mark.engine
def test_exec_gives_a_result_object_a_line(sandboxed, tmp_path):
    program = tmp_path / "hello.py"
    program.write_text("print('hello')")
    told = sandboxed("exec", "--json", "--timeout", "5", str(program), str(program))
    assert (told.returncode, told.stderr) == (0, "")
    results = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(result["id"], result["status"], result["stdout"]) for result in results] == [
        (str(program), "completed", "hello\n")
    ] * 2
    assert results[0]["limits"]["timeout_seconds"] == 5


@pytest.mark.engine
def test_exec_says_that_another_engine_stands_in(sandboxed):
    told = sandboxed("exec", "--engine", "gvisor", "--engines", "docker=runc,gvisor=none-such", "-", stdin="print(1)")
    assert (told.returncode, told.stdout) == (0, "1\n")
    assert "engine gvisor does not work (the daemon has no runtime none-such); using docker\n" in told.stderr


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--engine", "gvisor", "--engines", "docker=runc,gvisor=none-such", "--engine-fallback", "never"), 69,
         "engine gvisor does not work: the daemon has no runtime none-such."),
        (("--engine", "vax"), 69, "no engine is called 'vax'"),
        (("--language", "cobol"), 64, "no image for language 'cobol'"),
    ],
)  # fmt: skip
def test_exec_that_cannot_be_says_why_in_one_line(sandboxed, arguments, code, says):
    told = sandboxed("exec", *arguments, "-")
    assert (told.returncode, told.stdout) == (code, "")
    assert says in told.stderr
    assert told.stderr.count("\n") == 1


@pytest.mark.engine
def test_exec_of_an_image_that_is_missing(call, daemon):
    told = call("exec", "-", CRUCIBLE_LANGUAGES="python=none-such:none")
    assert (told.returncode, told.stdout) == (69, "")
    assert "image none-such:none is not on this host; make it with 'image build' or load it" in told.stderr


@pytest.mark.engine
def test_control_c_takes_the_sandbox_along(daemon, sandbox_image, environment, worker_id):
    """No traceback, exit code 130, and nothing is left on the host."""
    events = daemon._client().events(filters={"label": f"crucible.worker={worker_id}", "event": "start"}, decode=True)
    process = subprocess.Popen(
        [*COMMAND, "exec", "-"], env=environment | {"CRUCIBLE_LANGUAGES": f"python={sandbox_image}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write("print('up', flush=True)\nimport time; time.sleep(1000)")
    process.stdin.close()
    program = next(
        event["id"] for event in events if not event["Actor"]["Attributes"]["crucible.task"].startswith("canary")
    )
    events.close()
    assert program
    process.send_signal(signal.SIGINT)
    with process:
        assert process.wait(60) == 130
        assert process.stderr.read() == ""
    assert not daemon.containers({"crucible.worker": worker_id})


@pytest.mark.engine
def test_a_reader_that_goes_away_ends_exec_quietly(daemon, sandbox_image, environment):
    process = subprocess.Popen(
        [*COMMAND, "exec", "--json", "-"], env=environment | {"CRUCIBLE_LANGUAGES": f"python={sandbox_image}"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.wait(60) == -signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.engine
def test_the_demo_shows_nothing_on_an_engine_that_is_not_there(sandboxed):
    told = sandboxed("demo", "--engines", "docker=runc,gvisor=none-such")
    assert told.returncode == 0
    assert "the daemon has no runtime none-such: nothing is shown on gvisor\n" in told.stdout
    assert "\ngvisor " not in told.stdout


@pytest.mark.engine
def test_image_check_tells_the_one_that_is_there_and_the_one_that_is_not(sandboxed, sandbox_image):
    assert sandboxed("image", "check", "--image", sandbox_image).returncode == 0
    told = sandboxed("image", "check", "--image", "none-such:none", "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)
