"""Whatever a queue hands over: one clear log line, the right call to the queue, and the next good task is run."""

import json
import re

import pytest
from scripted_queue import ScriptedQueue
from scripted_server import ScriptedServer, cut, document, hang_up, never, status
from worker_process import Starter, sandboxes

pytestmark = pytest.mark.engine
GOOD = {"eval_id": "good", "code": "print('good')"}
HTML = "<html><body>Please log in</body></html>"


def good(eval_id: str, **values: object) -> dict:
    return GOOD | {"eval_id": eval_id} | values


class House:
    """One worker for the many cases of this module; each case has ids of its own."""

    def __init__(self, queue, worker) -> None:
        self.queue = queue
        self.worker = worker
        self._case = 0

    def goes_on(self) -> None:
        """The next good task is run."""
        self._case += 1
        self.queue.push(good(f"good-{self._case}"))
        assert self.queue.completed(f"good-{self._case}")["output"] == "good\n"


@pytest.fixture(scope="module")
def house(docker, tmp_path_factory):
    with ScriptedQueue() as queue:
        start = Starter(queue.url, tmp_path_factory.mktemp("house") / "state")
        settings = {
            "CRUCIBLE_TIMEOUT_MAX": "30",
            "CRUCIBLE_LANGUAGES": "python=crucible-sandbox:python,lost=no-such:image",
        }
        try:
            worker = start(**settings)
            yield House(queue, worker)
            assert worker.stop() == 0
        finally:
            start.close()
    assert sandboxes(docker, start.worker_id) == []
    assert not worker.events("internal_error")


# Answers that are no task: nothing can be reported, so it is said in the log, and the queue is asked again.

NO_TASK = {
    "malformed JSON": (status(200, '{"eval_id": "x", "code": '), "is not JSON"),
    "an HTML page": (status(200, HTML, Content_Type="text/html"), "Please log in"),
    "a body that is not UTF-8": (status(200, b'{"eval_id":"x","code":"\xff\xfe"}'), "is not JSON"),
    "an empty body": (status(200, b""), "is not JSON"),
    "deep nesting": (status(200, "[" * 100_000), "is not JSON"),
    "a cut body": (cut(b'{"eval_id":"x",', 1000), "cut off after 15 bytes"),
    "no answer at all": (hang_up, "cannot be reached"),
    "500": (status(500, "oh no"), "answered 500: oh no"),
    "503 for a while": (status(503, "", Retry_After="1"), "answered 503"),
    "429": (status(429, "", Retry_After="1"), "answered 429"),
    "a refusal": (status(400, "what?"), "answered 400: what?"),
}


@pytest.mark.parametrize("name", NO_TASK)
def test_an_answer_that_is_no_task_is_said_and_survived(name, house):
    answer, words = NO_TASK[name]
    before = len(house.worker.events("queue_connection_failed"))
    house.queue.poll_answers.append(answer)
    line = house.worker.event("queue_connection_failed", count=before + 1)
    assert words in line["error"]
    assert line["level"] == "warning"
    assert line["retry_in_seconds"] <= 1
    house.goes_on()
    assert len(house.worker.events("queue_connection_failed")) == before + 1


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(code, house):
    before = len(house.worker.events("queue_connection_failed"))
    with ScriptedServer(document(GOOD)) as elsewhere:
        house.queue.poll_answers.append(status(code, "", Location=f"{elsewhere.url}/tasks/next"))
        line = house.worker.event("queue_connection_failed", count=before + 1)
        house.goes_on()
    assert f"redirects ({code}) to {elsewhere.url}" in line["error"]
    assert elsewhere.calls == []


@pytest.mark.parametrize("code", [204, 404])
def test_an_empty_queue_may_say_so_in_several_ways(code, house):
    house.queue.poll_answers.append(status(code))
    house.goes_on()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("[]", "a task must be a JSON object, not an array"),
        ('"task"', "a task must be a JSON object, not a string"),
        ("7", "a task must be a JSON object, not a number"),
        ('{"code": "print(1)"}', "eval_id must be a non-empty string, not null"),
        ('{"eval_id": "", "code": ""}', "eval_id must be a non-empty string, not an empty one"),
        ('{"eval_id": 7, "code": ""}', "eval_id must be a non-empty string, not a number"),
    ],
)
def test_a_task_without_a_name_cannot_be_reported(sent, words, house):
    calls, before = len(house.queue.settlements()), len(house.worker.events("task_unreportable"))
    house.queue.poll_answers.append(status(200, sent))
    line = house.worker.event("task_unreportable", count=before + 1)
    assert (line["level"], line["error"]) == ("error", words)
    house.goes_on()
    assert len(house.queue.settlements()) == calls + 1


# Tasks that cannot be what they claim to be: failed, with the reason.

INVALID = {
    "code-missing": ({"code": ...}, "invalid_task: code is missing"),
    "code-null": ({"code": None}, "invalid_task: code is missing"),
    "code-number": ({"code": 7}, "invalid_task: code must be a string, not a number"),
    "code-list": ({"code": ["print(1)"]}, "invalid_task: code must be a string, not an array"),
    "language-number": ({"language": 7}, "invalid_task: language must be a string, not a number"),
    "engine-object": ({"engine": {}}, "invalid_task: engine must be a string, not an object"),
    "timeout-zero": ({"timeout": 0}, "invalid_task: timeout must be more than 0 seconds, not 0"),
    "timeout-negative": ({"timeout": -3}, "invalid_task: timeout must be more than 0 seconds, not -3"),
    "timeout-string": ({"timeout": "30"}, "invalid_task: timeout must be a number of seconds, not a string"),
    "timeout-true": ({"timeout": True}, "invalid_task: timeout must be a number of seconds, not a boolean"),
    "timeout-nan": ({"timeout": float("nan")}, "invalid_task: timeout must be more than 0 seconds, not nan"),
    "language-unknown": ({"language": "cobol"}, "language_unknown: no image for language 'cobol'; known: "),
    "engine-unknown": ({"engine": "qemu"}, "engine_unavailable: no engine is called 'qemu'; known: docker"),
    "image-missing": ({"language": "lost"}, "image_missing: image no-such:image is not on this host"),
    "code-huge": ({"code": "#" * (40 << 20)}, "invalid_task: code, stdin and files of 41943040 characters exceed"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_task_that_cannot_be_run_fails_with_its_reason(name, house):
    values, words = INVALID[name]
    task = {key: value for key, value in good(name, **values).items() if value is not ...}
    house.queue.push(task)
    assert house.queue.failed(name).startswith(words)
    line = house.worker.event("task_failed", eval_id=name)
    assert (line["level"], line["reason"]) == ("error", words.partition(":")[0])
    house.goes_on()
    assert len(house.queue.settlements(name)) == 1
    assert len(house.worker.events("task_failed", eval_id=name)) == 1


# Tasks that look odd and are none the worse for it.


def verdict(house, **values: object) -> dict:
    task = good(f"odd-{len(house.queue.calls)}", **values)
    house.queue.push(task)
    result = house.queue.completed(task["eval_id"])
    house.goes_on()
    return result


def test_empty_code_is_a_program_that_ends_well(house):
    result = verdict(house, code="")
    assert (result["reason"], result["exit_code"], result["output"]) == ("exited", 0, "")


def test_ten_megabytes_of_code_are_run(house):
    code = f"x = '{'ü' * (5 << 20)}'\nprint(len(x))"
    assert verdict(house, code=code)["output"] == f"{5 << 20}\n"


@pytest.mark.parametrize("code", ["print(1)\0", "\0", "print('\ud800')", "x = '\udfff'\n"])
def test_odd_characters_in_code_are_the_interpreters_to_judge(code, house):
    result = verdict(house, code=code)
    assert (result["status"], result["reason"]) == ("failed", "exited_nonzero")
    assert "Error" in result["stderr"]


@pytest.mark.parametrize("timeout", [1e9, 1e308, 10**400, 31])
def test_a_timeout_above_the_maximum_is_clamped_in_plain_sight(timeout, house):
    assert verdict(house, timeout=timeout)["limits"]["timeout_seconds"] == 30


def test_fields_nobody_knows_are_ignored(house):
    assert verdict(house, priority=7, colour={"r": 255})["output"] == "good\n"


ODD_IDS = {
    "slashes": "a/b/../c//d", "dots": "..", "percent": "100%2F", "query": "a?b=c#d", "spaces": " a b ",
    "unicode": "prüfung-日本-🦀", "controls": "a\r\nX-Evil: 1\x00\x7f", "ten kilobytes": "x" * 10_240,
    "lone surrogate": "a\ud800b", "quotes": "'; DROP TABLE claims; --\"", "reordered": "\u202eabc",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_IDS)
def test_any_text_is_an_eval_id(name, house):
    eval_id = ODD_IDS[name]
    house.queue.push(good(eval_id))
    raw = house.queue.settled(eval_id)
    assert re.fullmatch(r"/tasks/[A-Za-z0-9._~%-]+/complete", raw.path), "percent-encoded, and one segment"
    assert raw.json["output"]["id"] == eval_id
    assert raw.json["output"]["output"] == "good\n"


# Trouble with saying what became of a task.


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(500, "oh no"), "answered 500: oh no"),
        (status(200, HTML), "is not JSON"),
        (status(302, "", Location="http://127.0.0.1:9/elsewhere"), "redirects (302)"),
        (status(429, "", Retry_After="1"), "answered 429"),
        (cut(b"{", 10), "cut off"),
        (hang_up, "cannot be reached"),
    ],
)
def test_a_result_is_said_until_it_is_heard(answer, words, house):
    eval_id = f"said-{len(house.queue.calls)}"
    house.queue.settle_answers.append(answer)
    house.queue.push(good(eval_id))
    assert words in house.worker.event("result_delivery_failed", eval_id=eval_id)["error"]
    house.worker.event("result_delivered", eval_id=eval_id)
    calls = house.queue.settlements(eval_id)
    assert len(calls) == 2
    assert calls[0].body == calls[1].body
    house.goes_on()


def test_one_stubborn_result_does_not_hold_up_the_others(house):
    house.queue.settle_answers.append(status(503, "", Retry_After="3"))
    house.queue.push(good("stubborn"))
    house.worker.event("result_delivery_failed", eval_id="stubborn")
    house.goes_on()
    assert len(house.queue.settlements("stubborn")) == 1
    house.worker.event("result_delivered", eval_id="stubborn")


def test_a_key_never_goes_where_a_redirect_points(queue, start_worker):
    with ScriptedServer(document(GOOD)) as elsewhere:
        queue.poll_answers.append(status(302, "", Location=f"{elsewhere.url}/tasks/next"))
        queue.settle_answers.append(status(307, "", Location=f"{elsewhere.url}/complete"))
        queue.push(good("after"))
        worker = start_worker(API_KEY="the-key-of-the-queue")
        worker.event("result_delivered", eval_id="after")
        assert worker.stop() == 0
        assert elsewhere.calls == []


def test_a_queue_that_never_answers_costs_a_poll(queue, start_worker):
    """The deadline of a poll is ten seconds beyond what it may wait for a task."""
    queue.poll_answers.append(never)
    queue.push(good("after"))
    worker = start_worker()
    line = worker.event("queue_connection_failed")
    assert line["error"] == "the queue no complete answer within 10 s"
    queue.completed("after")


def test_every_line_is_json_and_one_line(house):
    assert house.worker.noise == []
    assert all(json.loads(line) for line in house.worker.raw)
