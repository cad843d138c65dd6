import sqlite3
import stat
from pathlib import Path

import pytest

from crucible_worker.embedded.entry import ANYTHING, ConflictError, Filter, State, UnknownTaskError
from crucible_worker.embedded.store import GRACE_SECONDS, MAX_ATTEMPTS, Store
from crucible_worker.errors import ExitError
from crucible_worker.model import Task


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue.db")


@pytest.fixture
def store(path, clock):
    opened = Store(path, clock=clock)
    yield opened
    opened.close()


def put(store: Store, *ids: str, **fields) -> None:
    for eval_id in ids:
        store.submit(Task(eval_id, "pass", **fields))


def claim(store: Store, wanted: Filter = ANYTHING) -> str | None:
    task = store.claim(wanted)
    return task and task.eval_id


def test_tasks_come_in_order_of_priority_then_of_arrival(store):
    for eval_id, priority in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)]:
        store.submit(Task(eval_id, "pass"), priority)
    assert [claim(store) for _ in range(6)] == ["b", "d", "a", "c", "e", None]


def test_a_claimed_task_is_what_was_submitted_with_a_lease(store):
    code = "\0 \ud800 ü" + "x" * 10_000_000
    store.submit(Task("a/b €\0", code, "ruby", "gvisor", 1.5, stdin="\udfff"))
    task = store.claim()
    assert task is not None
    assert task.lease is not None
    assert (task.eval_id, task.code, task.language, task.engine, task.timeout, task.stdin) == (
        *("a/b €\0", code, "ruby", "gvisor", 1.5, "\udfff"),
    )
    assert task.lease.seconds == 60


def test_arguments_and_files_are_part_of_a_task(store):
    task = Task("a", "pass", args=("-x", "\ud800"), files={"b/c": b"\xff\0", "empty": b""})
    store.submit(task)
    assert store.submit(task)[1] is False
    with pytest.raises(ConflictError):
        store.submit(Task("a", "pass", args=("-y",), files=task.files))
    claimed = store.claim()
    assert claimed is not None
    assert (claimed.args, claimed.files) == (task.args, task.files)


def test_a_first_lease_outlasts_a_worker_that_ignores_leases(store, clock):
    put(store, "a", timeout=600)
    claim(store)
    clock.advance(600 + GRACE_SECONDS - 1)
    assert claim(store) is None
    clock.advance(1)
    assert claim(store) == "a"


def test_after_a_renewal_silence_costs_the_lease_within_lease_seconds(store, clock):
    put(store, "a", timeout=600)
    task = store.claim()
    assert store.renew("a", task.lease.id) is False
    clock.advance(59)
    store.renew("a", task.lease.id)
    clock.advance(59)
    assert claim(store) is None
    clock.advance(1)
    assert claim(store) == "a"
    assert store.get("a").attempts == 2


def test_an_expired_task_goes_back_to_its_old_place(store, clock):
    put(store, "a", "b", "c")
    claim(store)
    claim(store)
    clock.advance(1000)
    assert [claim(store) for _ in range(3)] == ["a", "b", "c"]


def test_an_older_lease_is_fenced_off(store, clock):
    put(store, "a")
    old = store.claim().lease.id
    clock.advance(1000)
    new = store.claim().lease.id
    for act in (
        lambda: store.settle("a", State.COMPLETED, "1", old),
        lambda: store.renew("a", old),
        lambda: store.release("a", old),
    ):
        with pytest.raises(ConflictError):
            act()
    store.settle("a", State.COMPLETED, "2", new)
    assert store.get("a").outcome == "2"


def test_a_late_result_is_taken_while_nobody_else_works_on_the_task(store, clock):
    put(store, "a")
    lease = store.claim().lease.id
    clock.advance(1000)
    assert store.get("a").state is State.QUEUED
    store.settle("a", State.COMPLETED, "1", lease)
    assert claim(store) is None


def test_a_late_renewal_takes_the_task_back_off_the_queue(store, clock):
    put(store, "a")
    lease = store.claim().lease.id
    clock.advance(1000)
    store.renew("a", lease)
    assert claim(store) is None


def test_a_released_task_goes_back_and_its_lease_is_void(store):
    put(store, "a", "b")
    lease = store.claim().lease.id
    store.release("a", lease)
    with pytest.raises(ConflictError):
        store.settle("a", State.COMPLETED, "1", lease)
    assert claim(store) == "a"


@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED])
def test_settling_again_succeeds_only_if_it_is_the_same_again(store, state):
    put(store, "a", "b")
    lease = store.claim().lease.id
    store.settle("a", state, "1", lease)
    store.settle("a", state, "2", lease)
    assert store.get("a").outcome == "1"
    store.settle("b", state, "1")
    store.settle("b", state, "1")
    other = State.FAILED if state is State.COMPLETED else State.COMPLETED
    for eval_id, kind, outcome, given in [
        ("a", other, "1", lease),
        ("a", state, "1", None),
        ("a", state, "1", "x"),
        ("b", state, "2", None),
        ("b", state, "1", lease),
    ]:
        with pytest.raises(ConflictError):
            store.settle(eval_id, kind, outcome, given)


def test_a_worker_without_leases_may_settle_whatever_is_not_settled(store, clock):
    put(store, "a", "b")
    claim(store)
    store.settle("a", State.COMPLETED, "1")
    store.settle("b", State.FAILED, '"no"')
    assert store.counts() == {State.QUEUED: 0, State.LEASED: 0, State.COMPLETED: 1, State.FAILED: 1}


def test_the_identical_task_again_is_no_second_one(store):
    task = Task("a", "pass")
    assert store.submit(task)[1] is True
    assert store.submit(task)[1] is False
    store.claim()
    assert store.submit(task)[0].state is State.LEASED
    store.settle("a", State.COMPLETED, "1")
    assert store.submit(task)[0].state is State.COMPLETED
    assert claim(store) is None
    for other, priority in [(Task("a", "other"), 0), (Task("a", "pass", stdin="x"), 0), (task, 1)]:
        with pytest.raises(ConflictError):
            store.submit(other, priority)


def test_a_task_whose_workers_vanish_fails_in_the_end(store, clock):
    put(store, "a")
    for _ in range(MAX_ATTEMPTS):
        assert claim(store) == "a"
        clock.advance(1000)
    assert claim(store) is None
    assert store.get("a").state is State.FAILED
    assert store.get("a").outcome == f'"no worker reported back in {MAX_ATTEMPTS} attempts"'


def test_cancelling_forgets_a_queued_task_and_tells_the_worker_of_a_leased_one(store):
    put(store, "a", "b")
    lease = store.claim().lease.id
    assert store.cancel("b") is State.QUEUED
    with pytest.raises(UnknownTaskError):
        store.get("b")
    assert store.cancel("a") is State.LEASED
    assert store.renew("a", lease) is True
    store.settle("a", State.COMPLETED, "1", lease)
    with pytest.raises(ConflictError):
        store.cancel("a")


@pytest.mark.parametrize("end", ["release", "expiry"])
def test_a_cancelled_task_is_never_handed_out_again(store, clock, end):
    put(store, "a")
    lease = store.claim().lease.id
    store.cancel("a")
    if end == "release":
        store.release("a", lease)
    else:
        clock.advance(1000)
    assert claim(store) is None
    assert (store.get("a").state, store.get("a").outcome) == (State.FAILED, '"cancelled"')


def test_a_worker_gets_only_what_it_can_run(store):
    store.submit(Task("a", "", engine="gvisor"))
    store.submit(Task("b", "", language="ruby"))
    store.submit(Task("c", ""), labels={"gpu", "big"})
    assert claim(store, Filter(engines={"docker"}, languages={"python"}, labels={"gpu"})) is None
    assert claim(store, Filter(labels={"gpu", "big", "x"}, languages={"python"}, engines={"docker"})) == "c"
    assert claim(store, Filter(engines={"docker"})) == "b"
    assert claim(store) == "a"


def test_old_outcomes_are_forgotten_by_number_and_by_age(path, clock):
    store = Store(path, keep=2, keep_seconds=100, clock=clock)
    put(store, "a", "b", "c", "queued")
    for eval_id in "abc":
        store.settle(eval_id, State.COMPLETED, "1")
        clock.advance(1)
    with pytest.raises(UnknownTaskError):
        store.get("a")
    assert store.counts()[State.COMPLETED] == 2
    clock.advance(101)
    assert store.counts() == {State.QUEUED: 1, State.LEASED: 0, State.COMPLETED: 0, State.FAILED: 0}
    store.close()


def test_clear_forgets_queued_tasks_only(store):
    put(store, "a", "b", "c")
    claim(store)
    assert store.clear() == 2
    assert store.get("a").state is State.LEASED


def test_everything_is_there_after_opening_again(path, clock):
    store = Store(path, clock=clock)
    put(store, "a", "b", "c")
    lease = store.claim().lease.id
    store.claim()
    store.settle("b", State.COMPLETED, '{"x": 1}')
    store.close()
    store = Store(path, clock=clock)
    assert store.get("b").outcome == '{"x": 1}'
    store.renew("a", lease)
    assert claim(store) == "c"
    store.close()


def test_the_file_is_its_owners_alone(store, path):
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600


def make_text(path: Path) -> None:
    path.write_text("this is no database, however long it is " * 50)


def make_foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()


def make_newer(path: Path) -> None:
    Store(str(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def make_torn(path: Path) -> None:
    Store(str(path)).close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_text, "not a database"),
        (make_foreign, "another program"),
        (make_newer, "newer version"),
        (make_torn, "malformed"),
        (make_folder, "not a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path, make, words):
    path = tmp_path / "queue.db"
    make(path)
    with pytest.raises(ExitError, match=words) as raised:
        Store(str(path))
    assert raised.value.code == 64
    assert "\n" not in str(raised.value)


def test_a_second_server_on_the_same_file_is_refused(store, path):
    with pytest.raises(ExitError, match="another process"):
        Store(path)


def test_a_failed_change_leaves_nothing_behind(store, monkeypatch):
    put(store, "a")
    store._db.execute("CREATE TRIGGER full BEFORE UPDATE ON task BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(sqlite3.Error, match="disk full"):
        store.claim()
    store._db.execute("DROP TRIGGER full")
    assert store.get("a").attempts == 0
    assert claim(store) == "a"


def test_a_change_is_on_the_disk_before_it_is_acknowledged(store):
    """kill -9 cannot show it, a power cut can: a write-ahead log that is synchronised at each commit."""
    modes = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert modes == ["wal", 2]
