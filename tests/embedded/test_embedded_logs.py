"""What a running task prints, told by its worker and read by whoever waits."""

import threading

import pytest
from embedded_support import Client

from crucible_worker.embedded import logbook


def message(sequence: int, content: str = "x", *, final: bool = False) -> dict:
    return {"sequence": sequence, "content": content, "is_final": final, "executor_id": "w", "stream": "stdout"}


def tell(client: Client, *messages: dict, eval_id: str = "e") -> int:
    return client.of(eval_id, "logs", {"messages": list(messages)}).status


def read(client: Client, after: int = -1, eval_id: str = "e", **headers: str) -> dict:
    return client.get(eval_id, f"/logs?after={after}", **headers).json()


def text(document: dict) -> str:
    return "".join(found["content"] for found in document["messages"])


@pytest.fixture
def task(client) -> Client:
    client.submit("e")
    client.next()
    return client


def test_messages_come_in_order_once_and_from_where_the_reader_was(task):
    assert read(task) == {"eval_id": "e", "attempt": 1, "messages": [], "is_final": False}
    assert tell(task, message(0, "a"), message(1, "b")) == 200
    assert tell(task, message(1, "b"), message(2, "c")) == 200
    assert text(read(task)) == "abc"
    assert text(read(task, after=1)) == "c"
    assert read(task)["messages"][0] == {**message(0, "a"), "timestamp": None}
    tell(task, message(3, "", final=True), message(4, "late"))
    assert (read(task, after=2)["is_final"], text(read(task))) == (True, "abc")


def test_a_reader_waits_for_the_next_message(task):
    found: list[dict] = []
    waiting = threading.Thread(target=lambda: found.append(read(task, after=0, Prefer="wait=20")))
    tell(task, message(0))
    waiting.start()
    tell(task, message(1, "news"))
    waiting.join(10)
    assert text(found[0]) == "news"


def test_another_attempt_begins_anew(task, clock):
    tell(task, message(0, "first"))
    clock.advance(3600)
    assert task.next()["eval_id"] == "e"
    assert (read(task)["attempt"], read(task)["messages"]) == (2, [])


def test_it_ends_with_the_task_even_where_no_last_word_comes(task, clock):
    tell(task, message(0))
    task.of("e", "complete", {"output": {}})
    assert not read(task)["is_final"], "the last words may still be on their way"
    clock.advance(60)
    assert read(task)["is_final"]


def test_memory_is_bounded(task):
    for n in range(30):
        tell(task, message(n, str(n % 10) * 20_000))
    kept = read(task)["messages"]
    assert kept[-1]["sequence"] == 29
    assert sum(len(found["content"]) for found in kept) <= logbook.TASK_BYTES
    book = logbook.Logbook()
    for n in range(3 * logbook.TASKS):
        book.add(str(n), [message(0)])
    assert len(book._logs) == logbook.TASKS
    assert book.read("0", -1) == ([], False)


@pytest.mark.parametrize(
    "messages",
    [None, {}, [1], [{}], [{"sequence": -1, "content": ""}], [{"sequence": True, "content": ""}],
     [{"sequence": 0, "content": 5}], [{"sequence": 0, "content": "", "is_final": 1}],
     [{"sequence": 0, "content": "", "stream": 1}]],
)  # fmt: skip
def test_what_is_no_message_is_refused(task, messages):
    assert task.of("e", "logs", {"messages": messages}).status == 400


def test_unknown_tasks_and_nonsense(task):
    assert tell(task, message(0), eval_id="nobody") == 404
    assert task.get("nobody", "/logs").status == 404
    assert task.get("e", "/logs?after=x").status == 400
