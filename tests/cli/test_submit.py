"""`submit` against the embedded queue, and against one that knows neither results nor preferences."""

import http.server
import io
import json
import threading
from collections.abc import Iterator

import pytest

from crucible_worker.cli.main import main
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.transport import HttpTransport


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("API_KEY", "API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def queue(monkeypatch) -> Iterator[EmbeddedQueue]:
    with EmbeddedQueue(api_key="key") as running:
        monkeypatch.setenv("QUEUE_SERVICE_URL", running.url)
        monkeypatch.setenv("API_KEY", "key")
        yield running


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "solution.py"
    path.write_bytes(b"print('\xc3\xbc')\r\n")
    return str(path)


class Worker(threading.Thread):
    """Settles `count` tasks with what `verdict` makes of them."""

    def __init__(self, url: str, verdict, count: int = 1) -> None:
        super().__init__()
        self.url, self.verdict, self.count = url, verdict, count
        self.tasks: list[dict] = []
        self.start()

    def run(self) -> None:
        http = HttpTransport(lambda: "key")
        for _ in range(self.count):
            task = http.request("GET", f"{self.url}/tasks/next", headers={"Prefer": "wait=20"}).json()
            self.tasks.append(task)
            call, document = self.verdict(task)
            http.request("POST", f"{self.url}/tasks/{task['eval_id']}/{call}", json=document)


def verdict(status: str, reason: str):
    return lambda task: (
        "complete",
        {"output": {"id": task["eval_id"], "status": status, "reason": reason, "duration_ms": 1234.5}},
    )


def test_without_wait_the_ids_are_printed_and_the_tasks_are_queued(queue, file, capsys):
    options = ["--engine", "gvisor", "--timeout", "5", "--language", "python3", "--priority", "2"]
    assert main(["submit", file, file, *options]) == 0
    ids = capsys.readouterr().out.split()
    worker = Worker(queue.url, verdict("completed", "exited"), 2)
    worker.join()
    assert [task["eval_id"] for task in worker.tasks] == ids
    del worker.tasks[0]["lease"]
    assert worker.tasks[0] == {
        "eval_id": ids[0],
        "code": "print('ü')\r\n",
        "language": "python3",
        "engine": "gvisor",
        "timeout": 5,
    }


def test_with_wait_a_line_tells_the_verdict(queue, file, capsys):
    worker = Worker(queue.url, verdict("completed", "exited"))
    assert main(["submit", file, "--wait"]) == 0
    worker.join()
    assert capsys.readouterr().out.split() == ["completed", "exited", "1.23", "s", worker.tasks[0]["eval_id"], file]


def test_a_verdict_other_than_completed_is_exit_code_1(queue, file, capsys):
    seen: list[dict] = []

    def second_times_out(task):
        seen.append(task)
        return verdict("completed" if len(seen) == 1 else "timeout", "exited")(task)

    worker = Worker(queue.url, second_times_out, 2)
    assert main(["submit", file, file, "--wait", "--json"]) == 1
    worker.join()
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(result["id"], result["status"]) for result in results] == [
        (worker.tasks[0]["eval_id"], "completed"),
        (worker.tasks[1]["eval_id"], "timeout"),
    ]


def test_a_task_without_a_verdict_shows_its_error_on_one_line(queue, file, capsys):
    worker = Worker(queue.url, lambda _: ("fail", {"error": "no\nengine \x1b[31m"}))
    assert main(["submit", file, "--wait"]) == 1
    worker.join()
    assert capsys.readouterr().out.startswith("error      no engine  [31m")


def test_code_may_come_from_standard_input(queue, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"print(42)")))
    assert main(["submit", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "queued"
    worker = Worker(queue.url, verdict("completed", "exited"))
    worker.join()
    assert worker.tasks[0]["code"] == "print(42)"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{file}", "--queue-url", "http://127.0.0.1:9"], 75, "cannot be reached"),
        (["{file}", "--queue-url", "nonsense"], 64, "--queue-url"),
        (["{file}", "--api-key-file", "{file}"], 77, "refuses the key"),
        (["{file}", "--timeout", "-1"], 64, "timeout must be more than 0"),
        (["{file}", "--timeout", "x"], 64, "--timeout"),
        (["/nowhere/x.py"], 64, "cannot be read"),
        (["/bin/ls"], 64, "not UTF-8"),
        ([], 64, "FILE"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_documented_code(queue, tmp_path, capsys, arguments, code, words):
    (tmp_path / "x.py").write_text("pass")
    arguments = [text.replace("{file}", str(tmp_path / "x.py")) for text in arguments]
    assert main(["submit", *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_task_that_is_cancelled_while_waited_for_ends_the_wait(queue, file, capsys):
    def cancel() -> None:
        http = HttpTransport(lambda: "key")
        while not http.request("DELETE", f"{queue.url}/tasks").json()["deleted"]:
            pass

    thread = threading.Thread(target=cancel)
    thread.start()
    assert main(["submit", file, "--wait"]) == 1
    thread.join()
    assert "does not know task" in capsys.readouterr().err


class OldQueue(http.server.BaseHTTPRequestHandler):
    """A Queue Service without any extension: a task is done when its status is asked for the second time."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {"status": "queued"})

    def do_GET(self) -> None:
        if self.path.endswith("/result"):
            self.answer(404, {"detail": "Not Found"})
            return
        type(self).asked += 1
        self.answer(200, {"status": "queued" if self.asked < 2 else "completed"})

    def answer(self, status: int, document: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_queue_without_results_is_asked_for_the_status(file, capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OldQueue) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["submit", file, "--wait", "--json", "--queue-url", url]) == 0
        server.shutdown()
        thread.join()
    assert json.loads(capsys.readouterr().out)["status"] == "completed"
