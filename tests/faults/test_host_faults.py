"""A host that misbehaves: its disk is full, its clock is set, its Docker Engine stops, dies, or hangs."""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_proxy import AFTER, BEFORE, Proxy
from precondition import unavailable
from private_docker import private_docker
from scene import CODE, Scene

pytestmark = pytest.mark.engine
LONG = "import time\nprint('hello', flush=True)\ntime.sleep(8)\nprint('bye')"


def fill(ballast: Path) -> bool:
    """Leave no byte free on the disk where `ballast` is to be."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return True


@pytest.fixture
def small_disk(scene):
    """The state directory is a disk of two megabytes. Returns what fills it to the brim, and what makes room again."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        unavailable("a small disk needs root and mount")
    scene.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(scene.state)], check=True)
    ballast = scene.state / "ballast"
    yield lambda: fill(ballast), ballast.unlink
    scene.starter.close()
    subprocess.run(["umount", str(scene.state)], check=True)


def test_a_disk_that_fills_up_under_a_task_costs_nothing(scene, small_disk, survived):
    fill_it, make_room = small_disk
    fault = scene.docker_proxy.arm("output", AFTER, fill_it)
    task = scene.submit()
    worker = scene.worker(CRUCIBLE_DISK_RESERVE="1k")
    assert fault.happened.wait(60)
    worker.event("journal_write_failed")
    other = scene.submit()
    code, ready = worker.get("/ready")
    assert code == 503
    assert any("state directory" in reason for reason in ready["reasons"])
    assert worker.get("/health")[0] == 200
    time.sleep(4)  # longer than the lease: it has to be renewed meanwhile
    assert scene.ask("GET", f"/tasks/{other}")["status"] == "queued", "nothing more is claimed"
    make_room()
    assert not scene.settled_well(task).get("adopted")
    scene.settled_well(other)
    assert scene.ask("GET", f"/tasks/{task}")["attempts"] == 1
    survived["disk full"] += 1
    scene.ends_clean(worker)


def test_a_disk_that_is_nearly_full_stops_the_claiming(scene, small_disk, survived):
    fill_it, make_room = small_disk
    fill_it()
    Proxy.injected["disk full"] += 1
    make_room()
    (scene.state / "ballast").write_bytes(b"x" * 1_000_000)
    worker = scene.worker(CRUCIBLE_DISK_RESERVE="1500k")
    assert "disk_reserve" in worker.event("claiming_stopped")["reason"]
    task = scene.submit()
    worker.event("engine_available")
    assert worker.get("/ready")[0] == 503
    assert scene.ask("GET", f"/tasks/{task}")["status"] == "queued"
    make_room()
    worker.event("claiming_resumed")
    scene.settled_well(task)
    survived["disk low"] += 1
    scene.ends_clean(worker)


@pytest.fixture
def clock(tmp_path):
    """Settings for a worker whose clock can be set, and what sets it; its monotonic clock goes on as ever."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        unavailable("setting a process's clock needs libfaketime")
    file = tmp_path / "clock"
    file.write_text("+0")
    settings = {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    return settings, file.write_text


@pytest.mark.parametrize("jump", ["+3600", "-3600"])
def test_a_clock_that_is_set_by_an_hour_changes_no_verdict(jump, scene, clock, survived):
    settings, set_clock = clock

    def clock_is_set() -> bool:
        set_clock(jump)
        return True

    task = scene.submit()
    fault = scene.docker_proxy.arm("output", AFTER, clock_is_set)
    worker = scene.worker(**settings)
    assert fault.happened.wait(60)
    result = scene.settled_well(task)
    assert 0 < result["duration_ms"] < 30_000
    scene.settled_well(scene.submit())
    # What was left running before the jump gets its rest of time, no more and no less, in the next life.
    # By its second word it is in the journal that the code has started.
    long = scene.submit(f"print('hello', flush=True)\nimport time; time.sleep(1)\n{LONG}", timeout=60)
    fault = scene.docker_proxy.arm("output", AFTER, lambda: scene.kill() or set_clock("+0"), nth=2)
    assert fault.happened.wait(60)
    again = scene.worker(**settings)
    result = scene.result(long)
    assert (result["reason"], result["adopted"]) == ("exited", True)
    worker.process.wait()
    survived[f"clock {jump}"] += 2
    scene.ends_clean(again)


@pytest.fixture(scope="module")
def engine():
    with private_docker(disk="400m") as docker:
        yield docker


@pytest.fixture
def own(engine):
    """A scene on a Docker Engine of our own, which runs again afterwards whatever became of it."""
    made = Scene(engine.socket)
    yield made, engine
    if engine._process is None:
        engine.start()
    engine.thaw()
    made.close()


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_an_engine_that_goes_away_under_a_task_settles_it_and_the_worker_recovers(way, own, survived):
    scene, engine = own
    task = scene.submit(LONG, timeout=60)

    def engine_ends() -> bool:
        getattr(engine, way)()
        return True

    fault = scene.docker_proxy.arm("output", AFTER, engine_ends)
    worker = scene.worker()
    assert fault.happened.wait(60)
    line = worker.event("engine_unavailable")
    result = scene.result(task)
    assert result["error"].startswith("engine_error: "), (line, result)
    waiting = scene.submit()
    code, ready = worker.get("/ready")
    assert code == 503
    assert any("does not answer" in reason for reason in ready["reasons"])
    assert scene.ask("GET", f"/tasks/{waiting}")["status"] == "queued"
    engine.start()
    scene.settled_well(waiting)
    survived[f"engine {way}"] += 1
    scene.ends_clean(worker)


def test_an_engine_that_dies_under_a_worker_that_has_to_go_leaves_the_task_to_another(own, survived):
    scene, engine = own
    task = scene.submit(CODE.replace("0.7", "8"), timeout=60)
    worker = scene.worker()
    fault = scene.docker_proxy.arm("output", AFTER, lambda: engine.freeze() or True)
    assert fault.happened.wait(60)
    worker.signal(signal.SIGQUIT)
    worker.event("shutdown_requested")
    engine.kill()
    assert worker.exit_code() == 0
    told = scene.ask("GET", f"/tasks/{task}")
    assert told["status"] == "queued", str(told)
    survived["engine dies at the end"] += 1
    engine.start()
    again = scene.worker()
    scene.settled_well(task)
    scene.ends_clean(again)


def test_an_engine_without_room_says_so_and_the_worker_recovers(own, survived):
    scene, engine = own
    ballast = engine.data / "ballast"
    task = scene.submit()
    fault = scene.docker_proxy.arm("create", BEFORE, lambda: fill(ballast))
    worker = scene.worker()
    assert fault.happened.wait(60)
    worker.event("engine_unavailable")
    result = scene.result(task)
    assert result["error"].startswith("engine_unavailable: ")
    assert "no space left on device" in result["error"]
    waiting = scene.submit()
    ballast.unlink()
    scene.settled_well(waiting)
    survived["engine's disk full"] += 1
    scene.ends_clean(worker)


@pytest.mark.parametrize("step", ["create", "start", "wait", "remove"])
def test_an_engine_that_hangs_for_a_while_costs_time_only(step, own, survived):
    scene, engine = own

    def freeze() -> bool:
        engine.freeze()
        threading.Timer(4.0, engine.thaw).start()
        return True

    task = scene.submit()
    fault = scene.docker_proxy.arm(step, BEFORE, freeze)
    worker = scene.worker()
    assert fault.happened.wait(60)
    for _ in range(10):
        began = time.monotonic()
        assert worker.get("/live")[0] == 200
        worker.get("/health")
        worker.fetch("/metrics")
        assert time.monotonic() - began < 2, "the health endpoint waits for nobody"
    assert not scene.settled_well(task).get("adopted")
    assert scene.ask("GET", f"/tasks/{task}")["attempts"] == 1, "its lease was renewed meanwhile"
    survived[f"freeze at {step}"] += 1
    scene.ends_clean(worker)


def test_an_engine_that_hangs_does_not_keep_a_worker_that_has_to_go(own, survived):
    scene, engine = own
    task = scene.submit(CODE.replace("0.7", "90"), timeout=200)
    worker = scene.worker()
    fault = scene.docker_proxy.arm("output", AFTER, lambda: engine.freeze() or True)
    assert fault.happened.wait(60)
    worker.signal(signal.SIGQUIT)
    worker.process.wait(150)
    assert worker.exit_code() == 75
    worker.event("cancel_timeout")
    engine.thaw()
    again = scene.worker()
    again.event("engine_available")
    again.signal(signal.SIGQUIT)
    assert again.exit_code() == 0
    told = scene.ask("GET", f"/tasks/{task}")
    assert told["status"] == "queued", str(told)
    scene.nothing_left()
    survived["hang at the end"] += 1
