"""A worker under a real systemd, as docs/operations.md installs it, and a queue for it. In a machine of its own."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
PYZ = Path("/opt/crucible/crucible-worker.pyz")
UNIT = "crucible-worker.service"
PATIENCE = 120.0
QUEUE = {"PATH": "/usr/bin:/bin", "QUEUE_SERVICE_URL": "http://queue:8081", "SHIV_ROOT": "/var/cache/submit"}
T = TypeVar("T")


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def show(name: str, unit: str = UNIT) -> str:
    return systemctl("show", "--property", name, "--value", unit).strip()


def until(what: str, found: Callable[[], T]) -> T:
    """What `found` finds, once that is something."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s\n{log()}"
        time.sleep(0.1)
    return value


def log(*options: str) -> str:
    return subprocess.run(["journalctl", "-o", "cat", "-u", UNIT, *options], capture_output=True, text=True).stdout


def events(name: str) -> list[dict]:
    found = [json.loads(line) for line in log().splitlines() if line.startswith("{")]
    return [line for line in found if line.get("event") == name]


def submit(code: str) -> subprocess.Popen[str]:
    """A task, and whoever waits for its RESULT."""
    command = [PYZ, "submit", "-", "--wait", "--json", "--api-key-file", "/etc/crucible-worker/api-key"]
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=QUEUE)
    waiting.stdin.write(code)
    waiting.stdin.close()
    waiting.stdin = None
    return waiting


def result(waiting: subprocess.Popen[str]) -> dict:
    said, _ = waiting.communicate(timeout=PATIENCE)
    return json.loads(said)


def ready(port: int = 8082) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def start() -> int:
    """The worker's process, once it takes tasks."""
    systemctl("start", UNIT)
    until("the worker is not ready", ready)
    return int(show("MainPID"))


def sandboxes(worker_id: str = socket.gethostname()) -> str:
    command = ["docker", "ps", "--all", "--filter", f"label=crucible.worker={worker_id}"]
    command += ["--format", "{{.ID}} {{.Labels}} {{.Status}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def documented(heading: str, block: int = 0) -> str:
    """A block of commands below a heading of docs/operations.md. What needs a network has been done before."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    lines = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)[block].splitlines()
    return "\n".join(line[4:] for line in lines if "apt-get" not in line)


@contextmanager
def installed(release: Path, *commands: str, environ: Mapping[str, str]) -> Iterator[None]:
    """A queue with a key, and the worker that these commands install from an unpacked release."""
    (release / "key").write_text("a secret key")
    (release / PYZ.name).write_bytes((ROOT / "dist" / PYZ.name).read_bytes())
    (release / PYZ.name).chmod(0o755)
    (release / "deploy").symlink_to(ROOT / "deploy")
    with Path("/etc/hosts").open("a", encoding="utf-8") as hosts:
        hosts.write("127.0.0.1 queue\n")
    queue = subprocess.Popen(
        [sys.executable, "-I", release / PYZ.name, "queue", "--address", "127.0.0.1:8081"],
        env={"API_KEY": "a secret key", "PATH": "/usr/bin:/bin", "SHIV_ROOT": str(release / "unpacked")},
        stderr=subprocess.DEVNULL, cwd=release,
    )  # fmt: skip
    for command in commands:
        subprocess.run(["bash", "-exc", command], cwd=release, env=dict(environ), check=True, timeout=2 * PATIENCE)
    yield
    systemctl("stop", UNIT)
    queue.terminate()
    assert queue.wait(PATIENCE) == 0
