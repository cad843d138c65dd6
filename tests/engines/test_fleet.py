"""Which engines work, which one runs a task, and which sandboxes are nobody's."""

import datetime as dt
import gc
import threading
import uuid
import warnings

import pytest

from crucible_worker.engines import policy, processes
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.fleet import FAILURES_IN_A_ROW, REST_SECONDS, Fleet
from crucible_worker.engines.leftovers import GRACE_SECONDS, Known, leftovers, overdue
from crucible_worker.engines.podman import is_podman
from crucible_worker.engines.reconciler import Reconciler, remove
from crucible_worker.errors import TaskError
from crucible_worker.model import Language, Limits, Reason, Task


class House:
    """A fleet with one engine that works and one that nobody has heard of; its clock is ours."""

    def __init__(self, daemon, image, runtime="runc", *, fallback=True, url=None, own_loopback=False) -> None:
        self.now = 0.0
        self.changes: list[tuple[str, bool]] = []
        self.worker = f"test-{uuid.uuid4().hex[:12]}"
        self.daemon = Daemon(url or daemon.url)
        self.fleet = Fleet(
            self.daemon, engines={"docker": runtime, "odd": "no-such-runtime"}, languages={"python": Language(image)},
            fallback=fallback, limits=Limits(), labels={"crucible.worker": self.worker, "crucible.boot": "b"},
            on_change=lambda name, state: self.changes.append((name, state.available)), clock=lambda: self.now,
            own_loopback=own_loopback,
        )  # fmt: skip

    def close(self) -> None:
        self.daemon.close()
        self.fleet._lookout.close()

    def run(self, code: str = "print(1)", image_of: str = "python"):
        task = Task("t", code, language=image_of)
        return self.fleet.run("docker", task, Limits(timeout_seconds=10), threading.Event())


@pytest.fixture
def house(daemon, sandbox_image, plain_runtime):
    made = House(daemon, sandbox_image, plain_runtime)
    yield made
    assert made.fleet.close(60)
    left = daemon.containers({"crucible.worker": made.worker})
    for container in left:
        daemon.remove(container["Id"])
    made.close()
    assert not left


@pytest.mark.engine
def test_an_engine_works_after_a_canary_and_not_before(house):
    assert not house.fleet.available()
    house.fleet.probe_all()
    states = house.fleet.states()
    assert states["docker"].available
    assert states["odd"].detail == "the daemon has no runtime no-such-runtime"
    house.fleet.probe_all()
    assert house.changes == [("docker", True), ("odd", False)], "told once"
    assert house.fleet.choose("docker") == "docker"
    assert house.fleet.choose("odd") == "docker"
    with pytest.raises(TaskError, match="no engine is called 'kata'"):
        house.fleet.choose("kata")


@pytest.mark.engine
@pytest.mark.parametrize("own", [False, True])
def test_the_runtime_makes_the_loopback_where_that_is_wanted(daemon, sandbox_image, plain_runtime, own):
    house = House(daemon, sandbox_image, plain_runtime, own_loopback=own)
    house.fleet.probe_all()
    run = house.run("print('localhost' in open('/etc/hosts').read())")
    assert run.stdout.data.decode() == f"{not own or is_podman(daemon.version())}\n"
    assert house.fleet.close(60)
    house.close()


@pytest.mark.engine
def test_without_fallback_a_task_needs_its_own_engine(daemon, sandbox_image):
    house = House(daemon, sandbox_image, fallback=False)
    house.fleet.probe_all()
    with pytest.raises(TaskError, match="engine odd does not work"):
        house.fleet.choose("odd")
    house.close()


def test_a_daemon_that_is_not_there_is_said_of_every_engine(tmp_path):
    house = House(None, "image", url=f"unix://{tmp_path}/none")
    with warnings.catch_warnings():
        # The SDK leaves the socket that could not connect to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        house.fleet.probe_all()
        gc.collect()
    assert all("does not answer" in state.detail for state in house.fleet.states().values())
    assert not house.fleet.available()


@pytest.mark.engine
def test_a_daemon_that_goes_away_under_a_task_takes_all_engines_with_it(house, tmp_path, monkeypatch):
    house.fleet.probe_all()

    def gone(*_: object) -> str:
        raise DaemonGoneError("the Docker Engine does not answer")

    monkeypatch.setattr(house.daemon, "create", gone)
    with pytest.raises(TaskError) as caught:
        house.run()
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE
    assert not house.fleet.available()
    monkeypatch.undo()
    house.fleet.probe_all()
    assert house.fleet.available()


@pytest.mark.engine
def test_an_engine_without_a_verdict_again_and_again_rests_and_longer_each_time(house, monkeypatch):
    """Its canary may be well all the same: it must not eat the queue."""
    house.fleet.probe_all()
    create = house.daemon.create

    def refuses(name, config):
        if config["Labels"]["crucible.task"] == "t":
            raise TaskError(Reason.ENGINE_UNAVAILABLE, "no more of these")
        return create(name, config)

    monkeypatch.setattr(house.daemon, "create", refuses)
    for count in range(FAILURES_IN_A_ROW):
        assert house.fleet.available(), count
        with pytest.raises(TaskError):
            house.run()
    for pause in REST_SECONDS[:2]:
        assert "no more of these" in house.fleet.states()["docker"].detail
        house.now += pause - 0.1
        house.fleet.probe_all()
        assert not house.fleet.available()
        house.now += 0.1
        house.fleet.probe_all()
        assert house.fleet.available()
        with pytest.raises(TaskError):
            house.run()
    monkeypatch.undo()
    house.now += 1000
    house.fleet.probe_all()
    assert house.run().verdict.exit_code == 0
    with pytest.raises(TaskError):
        house.run(image_of="cobol")
    assert house.fleet.available(), "one success is a new beginning, and what is wrong with a task is not the engine's"


# Leftovers


def container(identity: str, boot: str, deadline: str = "", name: str = "") -> dict:
    return {
        "Id": identity, "Names": [f"/{name}"], "Labels": {"crucible.boot": boot, "crucible.deadline": deadline},
    }  # fmt: skip


def test_only_what_is_certainly_nobodys_is_a_leftover():
    found = [
        container("ended", "old"),
        container("to be taken over", "old"),
        container("of another worker", "other"),
        container("mine", "me", name="live"),
        container("mine, forgotten", "me", name="not live"),
    ]
    known = Known(ended=["old"], boot="me", live={"live"}, spared={"to be taken over"})
    assert leftovers(found, known) == ["ended", "mine, forgotten"]
    assert leftovers(found, Known()) == []


def test_overdue_is_by_the_label_and_the_grace():
    now = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    late = (now - dt.timedelta(seconds=GRACE_SECONDS + 1)).isoformat()
    soon = (now - dt.timedelta(seconds=GRACE_SECONDS - 1)).isoformat()
    found = [container(text or "none", "x", text) for text in (late, soon, "", "yesterday", "2020-01-01T00:00:00")]
    assert overdue(found, now) == [late]


@pytest.fixture
def made(daemon, sandbox_image, plain_runtime):
    worker = f"test-{uuid.uuid4().hex[:12]}"

    def make(**labels: str) -> str:
        marked = {"crucible.worker": worker} | {f"crucible.{key}": value for key, value in labels.items()}
        config = policy.container_config(
            image=sandbox_image,
            runtime=plain_runtime,
            limits=Limits(),
            labels=marked,
            boot="import time; time.sleep(600)",
        )
        identity = daemon.create(f"crucible-{uuid.uuid4().hex}", config)
        daemon.start(identity)
        return identity

    make.worker = worker
    yield make
    for left in daemon.containers({"crucible.worker": worker}):
        daemon.remove(left["Id"])


@pytest.mark.engine
def test_the_overdue_of_unknown_lives_go_after_they_were_seen_for_as_long_as_the_grace(made, daemon):
    """A clock that was set must not cost a living worker its sandboxes."""
    moments = iter([0.0, GRACE_SECONDS - 1, GRACE_SECONDS, GRACE_SECONDS])
    reconciler = Reconciler(daemon, made.worker, clock=lambda: next(moments))
    late = made(boot="unknown", deadline="2020-01-01T00:00:00Z")
    for _ in range(2):
        assert reconciler.sweep(Known(boot="me")).removed == []
    assert reconciler.sweep(Known(boot="me")).removed == [late]
    assert daemon.inspect(late) is None
    assert reconciler.sweep(Known(boot="me")).removed == []


@pytest.mark.engine
def test_a_containers_processes_are_known_by_its_cgroup_and_no_others_are(made, daemon):
    one, two = made(boot="x"), made(boot="x")
    assert processes.of_container(one)
    assert not set(processes.of_container(one)) & set(processes.of_container(two))
    assert processes.of_container("short") == []
    assert processes.of_container("0" * 64) == []
    assert processes.kill(one)
    assert daemon.wait(one, 30) == 137
    assert daemon.inspect(two)["State"]["Running"]
    assert remove(daemon, [one, two]).stubborn == []
