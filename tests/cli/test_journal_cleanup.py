"""`journal` and `cleanup` as a user meets them, beside a worker or without one."""

import json
import subprocess
import sys
import time
import uuid

import pytest

from crucible_worker import outbox
from crucible_worker.engines import policy
from crucible_worker.journal import DEAD, RESULTS, Journal
from crucible_worker.model import Limits


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "crucible_worker", *arguments], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def state(tmp_path):
    """A state directory with one result that waits, one that was refused, and one open claim."""
    journal = Journal.of(str(tmp_path))
    journal.claim("open", None, "docker", time.time())
    for name in ("waits", "refused"):
        journal.settle(0, outbox.FAIL, name, {"error": f"engine_error: {name}"}, time.time())
    journal.bury(journal.pending(RESULTS)[1], "answered 422: no")
    yield str(tmp_path), journal
    journal.close()


def test_list_shows_what_is_there_while_a_worker_holds_it(state):
    folder, _ = state
    done = command("journal", "list", "--state-dir", folder)
    assert done.returncode == 0, done.stderr
    claim, waits, refused = done.stdout.splitlines()
    assert claim == "claim    'open' has not started"
    assert "results" in waits
    assert "'waits'" in waits
    assert refused.endswith("answered 422: no")
    listed = json.loads(command("journal", "list", "--json", "--state-dir", folder).stdout)
    assert [(e["lane"], e["eval_id"]) for e in listed["entries"]] == [(RESULTS, "waits"), (DEAD, "refused")]


def test_show_retry_and_drop(state):
    folder, journal = state
    dead = journal.pending(DEAD)[0]
    shown = json.loads(command("journal", "show", str(dead), "--state-dir", folder).stdout)
    assert shown["body"] == {"error": "engine_error: refused"}
    assert command("journal", "retry", "--state-dir", folder).returncode == 0
    assert journal.pending(DEAD) == []
    assert dead in journal.pending(RESULTS)
    assert journal.entry(dead).answer is None
    assert command("journal", "drop", str(dead), "--state-dir", folder).returncode == 0
    assert journal.entry(dead) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "999"], "there is no entry 999"),
        (["show"], "show needs the ID"),
        (["drop"], "drop needs the ID"),
        (["retry", "1"], "1 is no dead letter"),
        (["list", "--state-dir", "memory"], "there is no journal in memory"),
        (["list", "--state-dir", "/nowhere"], "there is no journal in /nowhere"),
        (["list", "some"], "invalid int value"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, words, state):
    done = command("journal", "--state-dir", state[0], *arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.fixture
def made(daemon, sandbox_image):
    """Makes sandboxes with labels, and removes what is left of them."""
    worker = f"test-{uuid.uuid4().hex[:12]}"

    def make(**labels: str) -> str:
        marked = {"crucible.worker": worker} | {f"crucible.{key}": value for key, value in labels.items()}
        config = policy.container_config(
            image=sandbox_image, runtime="runc", limits=Limits(), labels=marked, boot="import time; time.sleep(600)"
        )
        container = daemon.create(f"crucible-{uuid.uuid4().hex}", config)
        daemon.start(container)
        return container

    make.worker = worker
    yield make
    for container in daemon.containers({"crucible.worker": worker}):
        daemon.remove(container["Id"])


@pytest.mark.engine
def test_cleanup_removes_what_is_nobodys_and_nothing_else(made, daemon, tmp_path):
    journal = Journal.of(str(tmp_path))
    journal.begin("earlier")
    orphan = made(boot="earlier", deadline="2099-01-01T00:00:00Z")
    late = made(boot="of-some-other-life", deadline="2020-01-01T00:00:00Z")
    other = made(boot="of-some-other-life", deadline="2099-01-01T00:00:00Z")
    taken = made(boot="earlier", deadline="2099-01-01T00:00:00Z")
    journal.started(journal.claim("runs", None, "docker", 0.0), {"container": taken})
    settings = ("--state-dir", str(tmp_path), "--worker-id", made.worker)

    beside = command("cleanup", "--dry-run", *settings)
    assert beside.stdout == f"would remove {late}\n", "a worker holds the journal: its lives are not over"
    journal.close()
    dry = command("cleanup", "--dry-run", *settings)
    assert set(dry.stdout.split()) == {"would", "remove", orphan, late}
    assert daemon.inspect(orphan) is not None

    done = command("cleanup", *settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"removed", orphan, late}
    assert daemon.inspect(orphan) is None
    assert daemon.inspect(late) is None
    assert daemon.inspect(other) is not None
    assert daemon.inspect(taken) is not None


def test_cleanup_without_a_daemon_is_one_line(tmp_path):
    done = command("cleanup", "--docker-host", f"unix://{tmp_path}/none")
    assert (done.returncode, done.stdout) == (69, "")
    assert "does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1
