"""A worker and a queue that leases: renewals, cancellations, lost leases, and tasks given back."""

import signal
import threading
import time
import uuid

import pytest
from scripted_server import PATIENCE, ScriptedServer, after, document, status
from worker_process import Starter, sandboxes

from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.transport import HttpTransport

pytestmark = pytest.mark.engine
LONG = "import time; print('so far', flush=True); time.sleep(300)"


class Client:
    """What a submitter says to the queue."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = HttpTransport()

    def ask(self, method: str, path: str, body: object = None) -> dict:
        return self._http.request(method, f"{self.url}{path}", json=body).check().json()

    def printed(self, name: str) -> str:
        """What a task has printed, once it has printed something."""
        path, wait = f"{self.url}/tasks/{name}/logs?after=-1", {"Prefer": f"wait={PATIENCE:.0f}"}
        told = self._http.request("GET", path, headers=wait, deadline=2 * PATIENCE).check().json()
        return "".join(message["content"] for message in told["messages"])

    def submit(self, code: str, **values: object) -> str:
        name = f"t-{uuid.uuid4().hex[:8]}"
        self.ask("POST", "/tasks", {"eval_id": name, "code": code, "timeout": 300} | values)
        return name

    def until(self, name: str, *wanted: str) -> dict:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            task = self.ask("GET", f"/tasks/{name}")
            if task["status"] in wanted:
                return task
            time.sleep(0.05)
        raise TimeoutError(task)

    def result(self, name: str) -> dict:
        self.until(name, "completed", "failed")
        return self.ask("GET", f"/tasks/{name}/result")


@pytest.fixture
def leasing():
    """The embedded queue, whose leases last two seconds."""
    with EmbeddedQueue(":memory:", "127.0.0.1:0", lease_seconds=2.0) as queue:
        yield Client(queue.url)


@pytest.fixture
def leased_worker(docker, leasing, tmp_path):
    starters = []

    def another(name: str = "state", **settings: str):
        starter = Starter(leasing.url, tmp_path / name)
        starters.append(starter)
        worker = starter(**settings)
        worker.sandboxes = lambda: sandboxes(docker, starter.worker_id)
        worker.again = starter
        return worker

    yield another
    for starter in starters:
        starter.close()
        left = sandboxes(docker, starter.worker_id)
        for container in left:
            docker.remove(container)
        assert left == [], "sandboxes were left behind"


def test_a_lease_is_renewed_for_as_long_as_the_task_runs_and_through_the_drain(leasing, leased_worker):
    name = leasing.submit("import time; time.sleep(7); print('done')")
    worker = leased_worker()
    worker.event("processing_task_started")
    # The first renewal shows that this worker renews: from then on a missed one would give the task away.
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert leasing.result(name)["output"] == "done\n"
    assert leasing.ask("GET", f"/tasks/{name}")["attempts"] == 1


def test_a_cancelled_task_is_ended(leasing, leased_worker):
    name = leasing.submit(LONG)
    worker = leased_worker(CRUCIBLE_LIVE_LOGS="queue")
    assert leasing.printed(name) == "so far\n"
    leasing.ask("DELETE", f"/tasks/{name}")
    result = leasing.result(name)
    assert (result["status"], result["reason"], result["stdout"]) == ("error", "cancelled", "so far\n")
    worker.event("task_cancelled", eval_id=name)
    assert worker.stop() == 0


def test_the_second_signal_gives_the_task_back(leasing, leased_worker):
    name = leasing.submit(LONG)
    worker = leased_worker()
    worker.event("processing_task_started")
    worker.signal(signal.SIGQUIT)
    assert worker.exit_code() == 0
    assert leasing.until(name, "queued", "leased")["status"] == "queued"
    worker.event("task_released", eval_id=name)


def test_what_a_killed_worker_held_is_followed_to_its_end_if_its_next_life_comes_in_time(leasing, leased_worker):
    name = leasing.submit("import time; time.sleep(4); print('done')")
    worker = leased_worker()
    worker.event("processing_task_started")
    until = time.monotonic() + PATIENCE
    while not worker.sandboxes() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)
    worker.signal(signal.SIGKILL)
    worker.exit_code()
    again = worker.again()
    assert leasing.result(name)["output"] in {"done\n", ""}
    again.event("result_delivered", eval_id=name)
    assert again.stop() == 0


@pytest.fixture
def losing():
    """A queue whose lease is lost as soon as it is asked about."""

    class Losing(ScriptedServer):
        given = False

        def answer(self, call):
            if call.path.endswith("/heartbeat"):
                return status(409, "{}")
            if call.method == "GET" and not self.given:
                self.given = True
                lease = {"id": "l", "seconds": 3}
                return document({"eval_id": "lost", "code": LONG, "timeout": 300, "lease": lease})
            return document(None)

    with Losing() as running:
        yield running


def test_a_lost_lease_abandons_that_task_only(losing, start_worker):
    worker = start_worker(QUEUE_SERVICE_URL=losing.url)
    worker.event("lease_lost", eval_id="lost")
    worker.event("task_abandoned", eval_id="lost")
    polls = len(losing.calls)
    losing.wait(lambda: len(losing.calls) > polls + 2, "another poll")
    assert worker.stop() == 0
    assert not [c for c in losing.calls if c.path.endswith(("/complete", "/fail", "/release"))]


def test_a_heartbeat_that_fails_ends_nothing(start_worker):
    class Failing(ScriptedServer):
        given = False

        def answer(self, call):
            if call.path.endswith("/heartbeat"):
                return status(503, "{}")
            if call.method == "GET" and not self.given:
                self.given = True
                code = "import time; time.sleep(5); print('done')"
                return document({"eval_id": "kept", "code": code, "lease": {"id": "l", "seconds": 1.5}})
            return document(None)

    with Failing() as queue:
        worker = start_worker(QUEUE_SERVICE_URL=queue.url)
        done = queue.wait(lambda: [c for c in queue.calls if c.path == "/tasks/kept/complete"])[0].json
        assert done["output"]["output"] == "done\n"
        assert done["lease"] == "l"
        assert len(worker.events("heartbeat_failed")) == 1
        worker.event("result_delivered")
        assert worker.stop() == 0


@pytest.mark.parametrize(("answers", "reason"), [((404, 404), "cancelled"), ((404, 200), "exited")])
def test_a_queue_without_leases_is_asked_where_that_is_wanted(answers, reason, queue, start_worker):
    """Not known twice in a row ends the task; once may be anything."""
    replies = iter(answers)
    plain = queue.answer
    queue.answer = lambda call: (
        status(next(replies, 200), "{}") if call.method == "GET" and call.path == "/tasks/asked" else plain(call)
    )
    queue.push({"eval_id": "asked", "code": "import time; time.sleep(4)", "timeout": 60})
    worker = start_worker(CRUCIBLE_CANCEL_POLL="0.5")
    assert queue.completed("asked")["reason"] == reason
    worker.event("result_delivered")
    assert worker.stop() == 0


def test_nobody_is_asked_otherwise(queue, start_worker):
    gate = threading.Event()
    queue.settle_answers.append(after(gate, status(200, "{}")))
    queue.push({"eval_id": "quiet", "code": "print(1)"})
    start_worker()
    queue.settled("quiet")
    gate.set()
    assert not [call for call in queue.calls if call.path == "/tasks/quiet"]
