"""The systemd units under a real systemd, on Debian's own Python. Run by `./build.sh matrix units`, in a machine."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from installation import (
    PATIENCE,
    ROOT,
    UNIT,
    documented,
    events,
    installed,
    log,
    ready,
    result,
    sandboxes,
    show,
    start,
    submit,
    systemctl,
    until,
)  # fmt: skip

DROP_IN = Path(f"/run/systemd/system/{UNIT}.d/test.conf")


@pytest.fixture(scope="module", autouse=True)
def installation(tmp_path_factory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("release"), documented("### systemd"), environ=os.environ):
        yield


@pytest.fixture
def running() -> int:
    """The worker's process; it takes tasks."""
    return start()


@pytest.fixture
def with_settings() -> Iterator[Callable[[str], None]]:
    """Adds to the unit for one test, and starts it."""

    def add(text: str) -> None:
        DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        DROP_IN.write_text(text, encoding="utf-8")
        systemctl("daemon-reload")

    yield add
    DROP_IN.unlink()
    systemctl("daemon-reload")
    systemctl("reset-failed", UNIT)


def test_it_settles_tasks_as_documented(running):
    assert show("ActiveState") == "active"
    until("its status is not shown", lambda: show("StatusText").startswith("healthy; 0 of 1 slots busy"))
    assert show("UnitFileState") == "enabled"
    done = result(submit("import sys; print(sys.version_info[:2])"))
    assert (done["status"], done["reason"], done["stdout"]) == ("completed", "exited", "(3, 11)\n")


def test_it_is_confined(running):
    status = Path(f"/proc/{running}/status").read_text()
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    uid = int(re.search(r"^Uid:\t(\d+)", status, re.MULTILINE)[1])
    assert 61184 <= uid <= 65519, "the range of DynamicUser=, systemd.exec(5)"
    found = subprocess.run(["systemd-analyze", "security", UNIT], capture_output=True, text=True, timeout=PATIENCE)
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", found.stdout + found.stderr)[1]) <= 2.5
    assert "a secret key" not in Path(f"/proc/{running}/environ").read_text()


def test_a_reload_reads_the_certificates_again_and_goes_on(running):
    seen = len(events("reloading"))
    systemctl("reload", UNIT)
    until("it was not told to reload", lambda: len(events("reloading")) > seen)
    assert int(show("MainPID")) == running


def test_a_stop_waits_for_the_running_task(running):
    waiting = submit("import time; print('started', flush=True); time.sleep(8); print('done')")
    until("the task does not run", lambda: "1 of 1 slots busy" in show("StatusText"))
    systemctl("stop", UNIT)
    assert (show("ActiveState"), show("Result"), show("ExecMainStatus")) == ("inactive", "success", "0")
    assert result(waiting)["stdout"] == "started\ndone\n"
    assert sandboxes() == ""


def test_a_stop_may_take_longer_than_its_timeout(with_settings):
    """As long as the worker says that it needs the time."""
    with_settings("[Service]\nTimeoutStopSec=5\n")
    start()
    waiting = submit("import time; time.sleep(15); print('done')")
    until("the task does not run", lambda: "1 of 1 slots busy" in show("StatusText"))
    systemctl("stop", UNIT)
    assert show("Result") == "success"
    assert result(waiting)["stdout"] == "done\n"


def test_a_worker_that_was_killed_comes_back_and_follows_its_task(running):
    waiting = submit("import time; time.sleep(12); print('survived')")
    until("the task does not run", lambda: "1 of 1 slots busy" in show("StatusText"))
    systemctl("kill", "--kill-whom=main", "--signal=KILL", UNIT)
    until("it is not started again", lambda: show("ActiveState") == "active" and int(show("MainPID")) != running)
    assert show("NRestarts") == "1"
    assert result(waiting)["stdout"] == "survived\n"


def test_one_that_hangs_is_ended_and_started_again(with_settings):
    with_settings("[Service]\nWatchdogSec=8\nTimeoutStopSec=8\n")
    hanging = start()
    before = int(show("NRestarts"))
    systemctl("kill", "--kill-whom=main", "--signal=STOP", UNIT)
    until("it is not started again", lambda: int(show("NRestarts")) > before)
    until("the worker is not ready", ready)
    assert int(show("MainPID")) != hanging
    assert "Watchdog timeout" in subprocess.run(["journalctl", "-u", UNIT], capture_output=True, text=True).stdout


def test_a_bad_setting_is_not_tried_again(with_settings):
    with_settings("[Service]\nEnvironment=CRUCIBLE_CONCURRENCY=many\n")
    systemctl("stop", UNIT)
    subprocess.run(["systemctl", "start", UNIT], capture_output=True, timeout=PATIENCE)
    assert (show("ActiveState"), show("ExecMainStatus")) == ("failed", "64")
    assert "CRUCIBLE_CONCURRENCY" in log()


def test_without_its_engine_it_stays_up_and_says_so(running):
    systemctl("stop", "docker.service", "docker.socket")
    until("its status does not say so", lambda: "no engine works" in show("StatusText"))
    assert show("ActiveState") == "active"
    systemctl("start", "docker")
    until("the worker is not ready", ready)
    assert int(show("MainPID")) == running
    systemctl("stop", UNIT)
    assert sandboxes() == "", log()


def test_several_workers_on_one_host():
    """Each with a port, a journal and a name of its own."""
    instances = [f"crucible-worker@{port}.service" for port in (8083, 8084)]
    (Path("/etc/systemd/system") / "crucible-worker@.service").write_bytes(
        (ROOT / "deploy" / "systemd" / "crucible-worker@.service").read_bytes()
    )
    Path("/etc/crucible-worker/8084.env").write_text("CRUCIBLE_CONCURRENCY=2\n")
    systemctl("daemon-reload")
    systemctl("stop", UNIT)
    systemctl("start", *instances)
    until("both workers are not ready", lambda: ready(8083) and ready(8084))
    waiting = [submit("import time; time.sleep(4)") for _ in range(3)]
    until("it has no slots of its own", lambda: "2 of 2 slots busy" in show("StatusText", instances[1]))
    until("the other one does nothing", lambda: "1 of 1 slots busy" in show("StatusText", instances[0]))
    done = [result(one) for one in waiting]
    assert {one["status"] for one in done} == {"completed"}
    workers = {one["worker_id"] for one in done}
    assert workers == {f"{socket.gethostname()}-{port}" for port in (8083, 8084)}
    systemctl("stop", *instances)
    assert [sandboxes(worker) for worker in workers] == ["", ""]
