import base64
import errno
import io
import json
import re
import urllib.parse

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.observe import logs
from crucible_worker.observe.masking import Mask, plain

SECRET = 'k3y/with "odd" +characters=&ü'


@pytest.fixture(autouse=True)
def _unconfigured():
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def written(fmt: str = "json", level: str = "info", secrets=tuple) -> io.StringIO:
    stream = io.StringIO()
    logs.configure("w1", fmt, level, secrets, stream)
    return stream


def last(stream: io.StringIO) -> dict:
    return json.loads(stream.getvalue().splitlines()[-1])


def test_a_line_is_one_object_with_the_documented_keys():
    stream = written()
    logs.get_logger().info("polled", tasks=0)
    line = last(stream)
    assert list(line) == ["event", "level", "timestamp", "worker", "tasks"]
    assert (line["event"], line["level"], line["worker"], line["tasks"]) == ("polled", "info", "w1", 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])


def test_lines_within_a_task_say_which_and_lines_after_do_not():
    stream = written()
    with logs.task_context("e1", "docker"):
        logs.get_logger().warning("engine_fallback")
    logs.get_logger().info("polled")
    within, after = map(json.loads, stream.getvalue().splitlines())
    assert (within["eval_id"], within["engine"], within["level"]) == ("e1", "docker", "warning")
    assert "eval_id" not in after


def test_levels_below_the_least_are_not_written():
    stream = written(level="warning")
    for method in ("debug", "info", "warning", "error"):
        getattr(logs.get_logger(), method)("x")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["warning", "error"]


@pytest.mark.parametrize(
    "form",
    [
        str,
        urllib.parse.quote,
        urllib.parse.quote_plus,
        lambda s: urllib.parse.quote(s, safe=""),
        lambda s: urllib.parse.quote(s, safe="").lower(),
        lambda s: base64.b64encode(s.encode()).decode(),
        lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
        lambda s: base64.b64encode(f"user:{s}!".encode()).decode(),
        lambda s: json.dumps({"key": s}),
        lambda s: json.dumps({"key": s}, ensure_ascii=False),
        repr,
        str.encode,
    ],
)
@pytest.mark.parametrize("fmt", ["json", "console"])
def test_secrets_are_masked_in_whatever_form_and_place(form, fmt):
    stream = written(fmt, secrets=lambda: [SECRET])
    shown = form(SECRET)
    logs.get_logger().info("sent", url=shown, nested={"list": ["x", (shown,)]}, error=ValueError(shown))
    logs.get_logger().info(shown if isinstance(shown, str) else "sent")
    text = stream.getvalue()
    assert "****" in text
    for leak in (SECRET, "k3y/with", "k3y%2", "azN5L3dpdGg", "N5L3dpdG"):
        assert leak.lower() not in text.lower()


def test_a_secret_across_the_cut_of_a_long_value_leaves_nothing_behind():
    stream = written(secrets=lambda: [SECRET])
    logs.get_logger().info("x", value="a" * 1020 + SECRET)
    assert "k3y" not in stream.getvalue()


def test_a_key_that_was_read_again_is_masked_and_so_is_the_old_one():
    keys = ["first-key"]
    stream = written(secrets=lambda: keys)
    logs.get_logger().info("x", a="first-key")
    keys[:] = ["second-key"]
    logs.get_logger().info("x", a="first-key", b="second-key")
    assert last(stream)["a"] == last(stream)["b"] == "****"


def test_no_secret_masks_nothing():
    stream = written(secrets=lambda: [""])
    logs.get_logger().info("plain")
    assert last(stream)["event"] == "plain"


@given(st.text(st.characters(), max_size=50), st.sampled_from(["json", "console"]))
def test_no_text_breaks_a_line_or_reaches_the_terminal(text, fmt):
    stream = written(fmt)
    logs.get_logger().info(text, value=text, nested=[{text: text}])
    line = stream.getvalue()
    assert line.endswith("\n")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", line[:-1])
    if fmt == "json":
        assert json.loads(line)["value"] == text


def test_a_console_line_is_for_people():
    stream = written("console")
    logs.get_logger().info("task_claimed", eval_id="e 1", engine="docker", note="\x1b[2J")
    assert stream.getvalue()[13:] == 'info    task_claimed eval_id="e 1" engine=docker note=\\x1b[2J\n'


def test_auto_means_people_only_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, is_json in ((io.StringIO(), True), (Terminal(), False)):
        logs.configure("w1", "auto", stream=stream)
        logs.get_logger().info("x")
        assert stream.getvalue().startswith("{") is is_json


@pytest.mark.parametrize("level", ["info", "debug"])
def test_an_exception_is_one_line_and_its_traceback_only_for_debugging(level):
    stream = written(level=level)
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        logs.get_logger().error("failed", exc_info=True)
        logs.get_logger().error("failed", exc_info=error)
        logs.get_logger().exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["error"]) for line in lines] == [("error", "ValueError: two lines")] * 3
    assert ["test_logs.py" in line.get("traceback", "") for line in lines] == [level == "debug"] * 3


def test_long_values_are_shortened_with_a_note_of_their_length():
    stream = written()
    with logs.task_context("e" * 10_240, "docker"):
        logs.get_logger().info("x", many=list(range(1000)), table={str(n): n for n in range(1000)})
    line = last(stream)
    assert line["eval_id"].endswith("e… (10240 characters)")
    assert line["many"][-1] == "… (1000 items)"
    assert line["table"]["…"] == "(1000 items)"
    assert len(stream.getvalue()) < 5000


class Hostile:
    def __str__(self):
        raise RuntimeError("no text for you")


def _ring() -> list:
    ring: list = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    "value",
    [Hostile(), 10**5000, float("nan"), float("inf"), b"\xff", _ring(), {1: {2}}, object],
    ids=["hostile", "huge", "nan", "inf", "bytes", "ring", "nested", "class"],
)
@pytest.mark.parametrize("fmt", ["json", "console"])
def test_any_value_makes_a_line_of_strict_json(value, fmt):
    stream = written(fmt)
    logs.get_logger().info("x", value=value)
    assert stream.getvalue().count("\n") == 1
    json.dumps(plain(value, Mask(tuple)), allow_nan=False)


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed file")])
def test_a_stream_that_fails_loses_lines_and_nothing_else(error):
    logs.configure("w1", "json", stream=Failing(error))
    logs.get_logger().error("x")


def test_a_closed_stream_is_survived():
    stream = io.StringIO()
    stream.close()
    logs.configure("w1", stream=stream)
    logs.get_logger().error("x")


def test_a_stream_that_knows_only_ascii_gets_ascii():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    logs.configure("w1", "console", stream=stream)
    logs.get_logger().info("ünï")
    assert b"\\xfcn\\xef" in raw.getvalue()
