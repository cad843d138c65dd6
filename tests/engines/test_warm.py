"""Sandboxes made before their task comes: as good as new ones, used once, and gone when nobody needs them."""

import json
import threading
import time
import uuid

import pytest

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import Fleet
from crucible_worker.engines.warm import MAX_AGE_SECONDS, Pool
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Task

WHO = "import json, os, sys\nprint(json.dumps([os.uname().nodename, sys.argv, sorted(os.environ), os.listdir()]))"


class House:
    """A fleet that keeps two sandboxes warm for each of its engines."""

    def __init__(self, daemon, image, runtime, preload=()) -> None:
        self.worker = f"test-{uuid.uuid4().hex[:12]}"
        self.daemon = Daemon(daemon.url)
        self.troubles: list[str] = []
        self.limits = Limits(timeout_seconds=10.0)
        self.fleet = Fleet(
            self.daemon, engines={"docker": runtime}, languages={"python": Language(image, preload=preload)},
            fallback=False, limits=self.limits, labels={"crucible.worker": self.worker, "crucible.boot": "b"},
            on_trouble=lambda _, **details: self.troubles.append(details["detail"]), warm=2,
        )  # fmt: skip
        self.fleet.probe_all()

    def fill(self) -> None:
        while self.fleet.warmth.turn(threading.Event()):
            pass

    def run(self, code="print(1)", limits=None, **task):
        return self.fleet.run("docker", Task("t", code, **task), limits or self.limits, threading.Event())

    def containers(self) -> set[str]:
        return {container["Id"] for container in self.daemon.containers({"crucible.worker": self.worker})}

    def ready(self) -> int:
        return self.fleet.warmth.ready()["docker/python"]


@pytest.fixture
def make_house(daemon, sandbox_image, runtime):
    made = []

    def make(**given) -> House:
        made.append(House(daemon, sandbox_image, runtime, **given))
        return made[-1]

    yield make
    for house in made:
        assert house.fleet.close(60)
        assert not house.containers()
        house.daemon.close()


def test_a_task_gets_a_sandbox_that_waits_and_it_serves_no_other(make_house):
    house = make_house()
    house.fill()
    assert house.ready() == 2
    waiting = house.containers()
    runs = [house.run("print(6 * 7)") for _ in range(3)]
    assert [(run.warm, run.stdout.data, run.verdict.exit_code) for run in runs] == [
        (True, b"42\n", 0), (True, b"42\n", 0), (False, b"42\n", 0),
    ]  # fmt: skip
    assert {run.container_id for run in runs[:2]} == waiting
    assert runs[2].container_id not in waiting
    assert set(runs[0].phases_ms) == {"boot", "run"}


def test_it_is_as_one_that_is_made_for_the_task(make_house):
    house = make_house()
    house.fill()
    task = {"args": ("a", "b"), "stdin": "", "files": {"x/y": b"z"}}
    warm, cold = house.run(WHO, **task), None
    house.fleet.warmth.close()
    while (run := house.run(WHO, **task)).warm:
        pass
    cold = run
    assert warm.warm
    assert json.loads(warm.stdout.data) == json.loads(cold.stdout.data)
    assert warm.image_id == cold.image_id


def test_what_is_counted_begins_with_the_code(make_house):
    house = make_house()
    house.fill()
    idle, busy = house.run("pass"), house.run("import time\nwhile time.process_time() < 1: pass")
    assert idle.warm
    assert busy.warm
    assert idle.cpu_ms is not None
    assert idle.cpu_ms < busy.cpu_ms / 2
    assert 500 <= busy.cpu_ms <= 2500


def test_other_limits_take_the_cold_road(make_house):
    house = make_house()
    house.fill()
    run = house.run(limits=Limits(timeout_seconds=10.0, memory_bytes=128 << 20))
    assert not run.warm
    assert house.ready() == 2


def test_one_that_died_is_not_given_out_and_replaced(make_house):
    house = make_house()
    house.fill()
    for container in house.containers():
        house.daemon.kill(container)
        house.daemon.wait(container, 10)
    assert house.run("print(1)").stdout.data == b"1\n"
    house.fill()
    assert house.ready() == 2
    assert house.run("print(1)").warm


def test_modules_are_imported_beforehand(make_house):
    house = make_house(preload=("json.tool", "decimal"))
    house.fill()
    run = house.run("import sys\nprint('json.tool' in sys.modules, 'decimal' in sys.modules, sys.argv)")
    assert run.warm
    assert run.stdout.data == b"True True ['/sandbox/main.py']\n"


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_a_module_that_is_not_there_is_told_by_the_canary(make_house):
    house = make_house(preload=("no_such_module",))
    assert "No module named 'no_such_module'" in house.fleet.states()["docker"].detail
    house.fill()
    assert house.ready() == 0


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_many_tasks_at_once_get_what_there_is(make_house):
    house = make_house()
    house.fill()
    runs = []
    threads = [threading.Thread(target=lambda: runs.append(house.run())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.warm for run in runs) == [False, False, True, True]
    assert len({run.container_id for run in runs}) == 4


def test_it_keeps_itself_full_and_leaves_nothing(make_house):
    house = make_house()
    stop = threading.Event()
    thread = threading.Thread(target=house.fleet.warmth.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while house.ready() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert house.run().warm
    while house.ready() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert house.ready() == 2
    stop.set()
    house.fleet.warmth.wake()
    thread.join(30)
    assert not thread.is_alive()


class Thing:
    """What a pool holds, without a sandbox."""

    def __init__(self, image="i", born=0.0, up=True) -> None:
        self.shape, self.image_id, self.born, self.up = "s", image, born, up

    def is_up(self, within=0.0) -> bool:
        return self.up


class Shelf:
    """A pool of things whose clock is ours."""

    def __init__(self, size=2) -> None:
        self.now = 0.0
        self.thrown: list[Thing] = []
        self.pool = Pool(lambda: Thing(born=self.now), self.thrown.append, size, lambda: self.now)


def test_one_that_is_too_old_or_of_another_image_is_replaced():
    shelf = Shelf()
    assert shelf.pool.fill()
    shelf.now = MAX_AGE_SECONDS / 2
    assert not shelf.pool.fill()
    shelf.now = MAX_AGE_SECONDS
    shelf.pool.clear_out("i")
    assert (shelf.pool.ready, len(shelf.thrown)) == (1, 1)
    shelf.pool.clear_out(None)
    assert shelf.pool.ready == 1
    shelf.pool.clear_out("j")
    assert (shelf.pool.ready, len(shelf.thrown)) == (0, 2)


def test_nothing_is_kept_after_the_end():
    shelf = Shelf()
    shelf.pool.fill()
    shelf.pool.close()
    assert not shelf.pool.fill()
    assert (shelf.pool.ready, len(shelf.thrown)) == (0, 1)
    assert shelf.pool.take("s") is None


def test_one_that_does_not_come_up_is_an_error_and_thrown_away():
    thrown: list[Thing] = []
    pool = Pool(lambda: Thing(up=False), thrown.append, 1)
    with pytest.raises(TaskError) as caught:
        pool.fill()
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert (pool.ready, len(thrown)) == (0, 1)


def test_only_one_of_its_shape_is_given_out():
    shelf = Shelf()
    shelf.pool.fill()
    assert shelf.pool.take("another") is None
    assert shelf.pool.take("s") is not None
    assert not shelf.thrown
