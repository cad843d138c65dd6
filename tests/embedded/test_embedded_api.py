"""Every call, over real HTTP and a real file."""

import datetime as dt
import threading
import time

import pytest
from embedded_support import Client, Clock

from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.embedded.wire import quote_id

RESULT = {"id": "a", "status": "completed", "output": "42\n"}


def test_a_task_travels_from_submission_to_result(client):
    submitted = client.submit("a", "print(42)", timeout=5, priority=3, stdin="in")
    assert (submitted.status, submitted.json()["status"]) == (201, "queued")
    task = client.next()
    lease = task.pop("lease")
    assert task == {
        "eval_id": "a",
        "code": "print(42)",
        "language": "python",
        "engine": "docker",
        "timeout": 5,
        "stdin": "in",
    }
    assert lease["seconds"] == 60
    assert client.get("a").json()["status"] == "running"
    assert client.of("a", "heartbeat", {"lease": lease["id"]}).json() == {"seconds": 60, "cancel": False}
    assert client.of("a", "complete", {"output": RESULT, "lease": lease["id"]}).status == 200
    assert client.get("a", "/result").json() == RESULT
    assert client.counts() == {"queued": 0, "running": 0, "completed": 1, "failed": 0}


def test_the_status_document_says_when_in_rfc_3339(client, clock):
    client.submit("a")
    clock.advance(2)
    client.next()
    client.of("a", "complete", {"output": RESULT})
    document = client.get("a").json()
    times = [dt.datetime.fromisoformat(document[name]) for name in ("submitted_at", "started_at", "finished_at")]
    assert times[0] == dt.datetime.fromtimestamp(1_700_000_000, dt.UTC)
    assert times[1] == times[2] == times[0] + dt.timedelta(seconds=2)
    assert (document["attempts"], document["status"], document["lease_expires_at"]) == (1, "completed", None)


def test_an_empty_queue_answers_null_at_once(client):
    assert client.next() is None


def test_only_code_is_required_and_an_id_is_made(client):
    answer = client.call("POST", "/tasks", {"code": ""})
    assert answer.status == 201
    assert client.next()["eval_id"] == answer.json()["eval_id"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"code": 1},
        {"code": "x", "eval_id": 7},
        {"code": "x", "eval_id": ""},
        {"code": "x", "eval_id": "next"},
        {"code": "x", "eval_id": "a" * 60_001},
        {"code": "x", "timeout": 0},
        {"code": "x", "timeout": "5"},
        {"code": "x", "timeout": 10**400},
        {"code": "x", "timeout": float("nan")},
        {"code": "x", "priority": "high"},
        {"code": "x", "priority": True},
        {"code": "x", "priority": 2**31},
        {"code": "x", "labels": ["a,b"]},
        {"code": "x", "labels": "gpu"},
        {"code": "x", "stdin": 1},
        ["code"],
        "code",
    ],
)
def test_a_submission_that_is_no_task_is_refused_in_one_sentence(client, document):
    answer = client.call("POST", "/tasks", document)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error.endswith(".")
    assert "\n" not in error
    assert client.counts()["queued"] == 0


def test_the_same_submission_again_is_200_and_another_one_409(client):
    assert [client.submit("a").status, client.submit("a").status, client.submit("a", "other").status] == [201, 200, 409]


def test_a_failed_task_has_a_result_with_its_error(client):
    client.submit("a")
    lease = client.next()["lease"]["id"]
    assert client.of("a", "fail", {"error": "no engine", "lease": lease}).status == 200
    assert client.get("a", "/result").json() == {"id": "a", "status": "error", "error": "no engine"}
    assert client.get("a").json()["status"] == "failed"


@pytest.mark.parametrize("kind", ["complete", "fail"])
def test_a_report_may_be_repeated_with_its_lease_and_contradicted_by_nobody(client, kind):
    client.submit("a")
    lease = client.next()["lease"]["id"]
    report = {"output": RESULT, "error": "x"}
    statuses = [
        client.of("a", kind, {**report, "lease": "older"}).status,
        client.of("a", kind, {**report, "lease": lease}).status,
        client.of("a", kind, {**report, "lease": lease}).status,
        client.of("a", kind, report).status,
        client.of("a", "fail" if kind == "complete" else "complete", {**report, "lease": lease}).status,
        client.of("a", "heartbeat", {"lease": lease}).status,
        client.of("a", "release", {"lease": lease}).status,
    ]
    assert statuses == [409, 200, 200, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("call", "document"),
    [
        ("complete", {}),
        ("complete", {"output": {}, "lease": 1}),
        ("fail", {}),
        ("fail", {"error": None}),
        ("heartbeat", {}),
        ("heartbeat", {"lease": None}),
        ("release", {"lease": 5}),
    ],
)
def test_a_report_that_lacks_something_is_400(client, call, document):
    client.submit("a")
    assert client.of("a", call, document).status == 400


def test_calls_about_an_unknown_task_are_404(client):
    assert client.get("a").status == client.get("a", "/result").status == 404
    assert client.call("DELETE", "/tasks/a").status == 404
    for call in ("complete", "fail", "heartbeat", "release"):
        assert client.of("a", call, {"output": 1, "error": "x", "lease": "y"}).status == 404


def test_a_released_task_is_handed_out_again(client):
    client.submit("a")
    assert client.of("a", "release", {"lease": client.next()["lease"]["id"]}).status == 200
    assert client.next()["eval_id"] == "a"


def test_cancelling_a_queued_task_forgets_it(client):
    client.submit("a")
    answer = client.call("DELETE", "/tasks/a")
    assert (answer.status, answer.json()["status"]) == (200, "cancelled")
    assert client.get("a").status == 404


def test_cancelling_a_running_task_is_told_with_the_next_heartbeat(client):
    client.submit("a")
    lease = client.next()["lease"]["id"]
    assert client.call("DELETE", "/tasks/a").status == 202
    assert client.of("a", "heartbeat", {"lease": lease}).json()["cancel"] is True
    client.of("a", "complete", {"output": RESULT, "lease": lease})
    assert client.call("DELETE", "/tasks/a").status == 409


def test_clearing_forgets_queued_tasks(client):
    for eval_id in "abc":
        client.submit(eval_id)
    client.next()
    assert client.call("DELETE", "/tasks").json() == {"deleted": 2}
    assert client.counts() == {"queued": 0, "running": 1, "completed": 0, "failed": 0}


def test_filters_choose_and_unknown_ones_are_ignored(client):
    client.submit("a", engine="gvisor")
    client.submit("b", labels=["gpu"])
    assert client.next("?engines=docker,kata&labels=none&colour=red") is None
    assert client.next("?engines=docker&engines=kata&languages=python&labels=gpu")["eval_id"] == "b"
    assert client.next("?engines=&languages=")["eval_id"] == "a"


ODD_IDS = ["a\ud800b", "a/b", "../x", ".", "%2F", "a b?c#d", "ü€😀", "\0\n", "x" * 10_000, "€" * 5000, "result", "-"]


@pytest.mark.parametrize("eval_id", ODD_IDS, ids=lambda eval_id: ascii(eval_id)[:12])
def test_any_eval_id_works_in_every_call(client, eval_id):
    assert client.submit(eval_id).status == 201
    task = client.next()
    lease = {"lease": task["lease"]["id"]}
    assert task["eval_id"] == eval_id
    assert client.get(eval_id).json()["eval_id"] == eval_id
    assert client.get(eval_id, "/result").status == 202
    assert client.of(eval_id, "heartbeat", lease).status == 200
    assert client.of(eval_id, "release", lease).status == 200
    client.next()
    assert client.of(eval_id, "complete", {"output": 1}).status == 200
    assert client.get(eval_id, "/result").json() == 1


def test_half_a_surrogate_pair_survives_in_an_error(client):
    client.submit("a")
    client.next()
    assert client.of("a", "fail", {"error": "\udfff"}).status == 200
    assert client.get("a", "/result").json()["error"] == "\udfff"


def test_ten_megabytes_of_odd_code_come_out_as_they_went_in(client):
    code = "\0\ud800\x7f\uffff" * 2_500_000
    assert client.submit("a", code).status == 201
    assert client.next()["code"] == code


def call_later(call) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def await_waiting(queue: EmbeddedQueue, count: int = 1) -> None:
    """Until `count` calls wait for a change."""
    deadline = time.monotonic() + 10
    while len(queue._api._changed._waiters) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_waiting_poll_wakes_with_the_submission(client, queue):
    found = []
    thread = call_later(lambda: found.append((client.next(Prefer="respond-async, Wait=30; x=1"), time.monotonic())))
    await_waiting(queue)
    submitted = time.monotonic()
    client.submit("a")
    thread.join()
    assert found[0][0]["eval_id"] == "a"
    assert found[0][1] - submitted < 0.9  # below the tick, so that it was told


def test_one_submission_is_handed_to_one_of_many_waiting_polls(client, queue):
    found = []
    threads = [call_later(lambda: found.append(client.next(Prefer="wait=1"))) for _ in range(8)]
    await_waiting(queue, 8)
    client.submit("a")
    for thread in threads:
        thread.join()
    assert sorted(task["eval_id"] if task else "" for task in found) == [""] * 7 + ["a"]


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [("wait=0", "wait=0"), ("wait=1", "wait=1"), ("wait=x", None), ("wait=-1", None), ("return=minimal", None)],
)
def test_the_preference_is_acknowledged_if_it_was_heard(client, prefer, applied):
    answer = client.call("GET", "/tasks/next", Prefer=prefer)
    assert answer.headers.get("preference-applied") == applied


def test_a_wait_is_capped(client):
    client.submit("a")
    assert client.call("GET", "/tasks/next", Prefer="wait=3600").headers["preference-applied"] == "wait=60"


def test_a_waiting_poll_gets_a_task_whose_lease_expires(client, queue, clock):
    client.submit("a")
    client.next()
    found = []
    thread = call_later(lambda: found.append(client.next(Prefer="wait=30")))
    await_waiting(queue)
    clock.advance(1000)
    thread.join()
    assert found[0]["eval_id"] == "a"


def test_waiting_for_a_result_ends_with_it(client, queue):
    client.submit("a")
    client.next()
    found = []
    thread = call_later(lambda: found.append(client.get("a", "/result", Prefer="wait=30")))
    await_waiting(queue)
    client.of("a", "complete", {"output": RESULT})
    thread.join()
    assert (found[0].status, found[0].json()) == (200, RESULT)


def test_a_result_that_is_not_there_yet_is_202_with_the_status(client):
    client.submit("a")
    answer = client.get("a", "/result", Prefer="wait=0")
    assert (answer.status, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=0"


def test_waiting_for_the_result_of_a_task_that_is_cancelled_ends_with_404(client, queue):
    client.submit("a")
    found = []
    thread = call_later(lambda: found.append(client.get("a", "/result", Prefer="wait=30")))
    await_waiting(queue)
    client.call("DELETE", "/tasks/a")
    thread.join()
    assert found[0].status == 404


def test_stopping_answers_those_who_wait(tmp_path):
    queue = EmbeddedQueue(str(tmp_path / "queue.db"))
    queue.start()
    found = []
    thread = call_later(lambda: found.append(Client(queue.url).next(Prefer="wait=60")))
    await_waiting(queue)
    queue.stop()
    thread.join()
    assert found == [None]


def test_tasks_and_leases_outlive_the_server(tmp_path):
    path, clock = str(tmp_path / "queue.db"), Clock()
    with EmbeddedQueue(path, clock=clock) as queue:
        client = Client(queue.url)
        client.submit("a")
        client.submit("b")
        lease = client.next()["lease"]["id"]
    with EmbeddedQueue(path, clock=clock) as queue:
        client = Client(queue.url)
        assert client.of("a", "complete", {"output": RESULT, "lease": lease}).status == 200
        assert client.next()["eval_id"] == "b"


def test_a_database_that_fails_is_503_and_heals(client, queue):
    client.submit("a")
    queue._store._db.execute("CREATE TRIGGER full BEFORE UPDATE ON task BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    answer = client.call("GET", "/tasks/next")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "disk full" in answer.json()["error"]
    queue._store._db.execute("DROP TRIGGER full")
    assert client.next()["eval_id"] == "a"


def test_a_key_is_asked_for_everywhere_but_at_health_and_the_description(tmp_path):
    with EmbeddedQueue(str(tmp_path / "queue.db"), api_key="s3cret") as queue:
        for key in ("", "wrong", "s3cret2"):
            client = Client(queue.url, key)
            refused = [
                client.call("GET", path) for path in ("/tasks/next", "/status", "/tasks/a", "/tasks/a/result", "/x")
            ]
            refused += [client.call("POST", "/tasks", {"code": "x" * 1000}), client.call("DELETE", "/tasks")]
            refused += [client.of("a", call, {"lease": "x"}) for call in ("complete", "fail", "heartbeat", "release")]
            assert {answer.status for answer in refused} == {401}
            assert client.call("GET", "/health").json() == {"status": "healthy"}
            assert client.call("GET", "/openapi.json").json()["openapi"].startswith("3.")
        assert Client(queue.url, "s3cret").submit("a").status == 201


def test_ids_are_quoted_reversibly():
    assert quote_id("a/b\ud800") == "a%2Fb%ED%A0%80"
