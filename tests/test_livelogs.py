"""Live logs: in order, bounded, with what is left out counted, and never in a task's way."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker import backlog, livelogs
from crucible_worker.errors import RejectedError, RetryError
from crucible_worker.livelogs import LiveLogs


class Watcher:
    """Takes messages; fails as told."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.error: Exception | None = None
        self.tries = 0

    def send(self, eval_id, messages) -> None:
        self.tries += 1
        if self.error:
            raise self.error
        assert {message["eval_id"] for message in messages} == {eval_id}
        self.messages += messages

    def of(self, eval_id: str) -> list[dict]:
        return [message for message in self.messages if message["eval_id"] == eval_id]

    def text(self, eval_id: str = "e") -> str:
        return "".join(message["content"] for message in self.of(eval_id))


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event, **_):
        self.events.append(event)

    warning = info


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def logs(watcher, log) -> LiveLogs:
    return LiveLogs(watcher, "worker-1", log)


def send_all(logs: LiveLogs) -> None:
    while logs.turn():
        pass


def test_a_message_has_what_the_platform_reads(logs, watcher):
    stream = logs.stream("e/1")
    stream.said(1, b"hello\n")
    stream.said(2, b"oh\n")
    stream.finish()
    send_all(logs)
    first, second, last = watcher.messages
    assert first.keys() >= {"eval_id", "sequence", "timestamp", "content", "executor_id", "is_final"}
    assert (first["eval_id"], first["content"], first["executor_id"]) == ("e/1", "hello\n", "worker-1")
    assert [(m["sequence"], m["stream"], m["is_final"]) for m in watcher.messages] == [
        (0, "stdout", False), (1, "stderr", False), (2, "stdout", True),
    ]  # fmt: skip
    assert (last["content"], second["timestamp"][-1]) == ("", "Z")
    assert not logs._streams


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50), st.booleans())))
def test_each_stream_arrives_in_order_as_text(pieces):
    watcher = Watcher()
    logs = LiveLogs(watcher, "w", Log())
    stream = logs.stream("e")
    for number, data, now in pieces:
        stream.said(number, data)
        if now:
            send_all(logs)
    stream.finish()
    send_all(logs)
    assert [message["sequence"] for message in watcher.messages] == list(range(len(watcher.messages)))
    assert [message["is_final"] for message in watcher.messages] == [False] * (len(watcher.messages) - 1) + [True]
    for number, name in ((1, "stdout"), (2, "stderr")):
        told = "".join(m["content"] for m in watcher.messages if m["stream"] == name and not m["is_final"])
        whole = b"".join(data for n, data, _ in pieces if n == number).decode("utf-8", "replace")
        assert whole.startswith(told)
        assert len(whole) - len(told) <= 3, "at most a character that was begun"


def test_small_writes_become_one_message_and_large_ones_several(logs, watcher):
    stream = logs.stream("e")
    for _ in range(1000):
        stream.said(1, b"x")
    stream.said(1, b"y" * 3 * backlog.MESSAGE_BYTES)
    send_all(logs)
    assert watcher.text() == "x" * 1000 + "y" * 3 * backlog.MESSAGE_BYTES
    assert len(watcher.messages) == 4
    assert max(len(message["content"]) for message in watcher.messages) <= backlog.MESSAGE_BYTES


def test_what_nobody_takes_is_bounded_counted_and_noted(watcher, log):
    dropped: list[int] = []
    logs = LiveLogs(watcher, "w", log, dropped.append)
    stream, others = logs.stream("e"), [logs.stream(str(n)) for n in range(40)]
    stream.said(1, b"a" * backlog.TASK_BYTES)
    stream.said(1, b"b" * 1000)
    stream.said(2, b"c" * 500)
    assert sum(dropped) == 1500
    for other in others:
        other.said(1, b"d" * backlog.TASK_BYTES)
    assert sum(stream.backlog.held for stream in logs._streams) <= livelogs.ALL_BYTES
    send_all(logs)
    stream.said(1, b"again")
    send_all(logs)
    assert watcher.text("e").endswith("a\n[... 1500 bytes omitted ...]\nagain")
    assert sum(stream.backlog.held for stream in logs._streams) == 0


def test_an_outage_is_said_once_counted_and_over_when_it_is_over(logs, watcher, log):
    stream = logs.stream("e")
    watcher.error = RetryError("away")
    stream.said(1, b"12345")
    assert not logs.turn()
    stream.said(1, b"678")
    assert not logs.turn()
    stream.finish()
    assert not logs.turn()
    watcher.error = None
    send_all(logs)
    assert watcher.text() == "\n[... 8 bytes omitted ...]\n"
    assert watcher.messages[-1]["is_final"]
    numbers = [message["sequence"] for message in watcher.messages]
    assert numbers == sorted(set(numbers))
    assert log.events == ["live_logs_unreachable", "live_logs_restored"]


def test_a_sink_that_refuses_is_not_asked_again_about_that_task(logs, watcher, log):
    watcher.error = RejectedError("answered 404")
    for eval_id in ("a", "b"):
        stream = logs.stream(eval_id)
        stream.said(1, b"x")
        send_all(logs)
    assert (watcher.tries, log.events) == (2, ["live_logs_refused"])
    assert not logs._streams


def test_tasks_that_ended_while_nobody_listens_do_not_pile_up(logs, watcher):
    watcher.error = RetryError("away")
    for n in range(3 * livelogs.MOST_STREAMS):
        logs.stream(str(n)).finish()
    assert len(logs._streams) == livelogs.MOST_STREAMS


def test_another_life_goes_on_above_the_numbers_of_the_first(logs, watcher):
    stream = logs.stream("e")
    for _ in range(5):
        stream.said(1, b"x")
        send_all(logs)
    watcher.error = RetryError("away")
    stream.said(1, b"x")
    for _ in range(50):
        logs.turn()
    watcher.error = None
    send_all(logs)
    last = watcher.messages[-1]["sequence"]
    again = logs.stream("e")
    again.replay()
    again.said(1, b"xxxxxx")
    again.go_on()
    again.said(1, b"new")
    send_all(logs)
    assert watcher.messages[-1]["content"] == "new"
    assert watcher.messages[-1]["sequence"] > last


def test_a_task_that_somebody_else_goes_on_with_gets_no_last_word(logs, watcher):
    stream = logs.stream("e")
    stream.said(1, b"x")
    stream.drop()
    send_all(logs)
    assert watcher.messages == []


def test_a_sink_that_hangs_holds_up_nobody_and_the_thread_ends():
    entered, release = threading.Event(), threading.Event()

    class Hanging(Watcher):
        def send(self, eval_id, messages):
            entered.set()
            release.wait(30)
            super().send(eval_id, messages)

    watcher, stop = Hanging(), threading.Event()
    logs = LiveLogs(watcher, "w", Log())
    thread = threading.Thread(target=logs.run, args=(stop,))
    thread.start()
    stream = logs.stream("e")
    stream.said(1, b"first")
    assert entered.wait(10)
    began = time.monotonic()
    for _ in range(10_000):
        stream.said(1, b"z" * 100)
    stream.finish()
    assert time.monotonic() - began < 5
    release.set()
    stop.set()
    logs.wake()
    thread.join(10)
    assert not thread.is_alive()
    assert watcher.messages[-1]["is_final"]
    assert "bytes omitted" in watcher.text()
