import dataclasses
import datetime as dt
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.model import (
    Captured,
    InvalidTaskError,
    Limits,
    Reason,
    Result,
    Run,
    Status,
    Task,
    Verdict,
    files_document,
    rfc3339,
)

TASK = {"eval_id": "e1", "code": "print(1)"}


def test_a_task_needs_only_an_id_and_code():
    assert Task.from_document(TASK) == Task("e1", "print(1)", "python", "docker", 30.0)


def test_nulls_and_unknown_fields_are_as_good_as_absent():
    document = {**TASK, "language": None, "engine": None, "timeout": None, "lease": None, "stdin": None, "new": [1]}
    assert Task.from_document(document) == Task.from_document(TASK)


@pytest.mark.parametrize("document", [None, [], [TASK], "task", 1, 1.5, True])
def test_what_is_no_object_cannot_even_be_reported(document):
    with pytest.raises(InvalidTaskError, match="must be a JSON object") as caught:
        Task.from_document(document)
    assert caught.value.eval_id is None


@pytest.mark.parametrize(
    "eval_id",
    ["ünï-✓", "a/b/../c", "a b?c#d%2F", "x" * 10_240, "\x00\n\x1b[31m", "🦊"],
    ids=["unicode", "slashes", "url characters", "10 kB", "controls", "astral"],
)
def test_an_id_is_opaque(eval_id):
    assert Task.from_document({**TASK, "eval_id": eval_id}).eval_id == eval_id


@pytest.mark.parametrize(
    ("eval_id", "says"),
    [
        (None, "null"),
        ("", "an empty one"),
        (7, "a number"),
        (True, "a boolean"),
        (["a"], "an array"),
        ({}, "an object"),
    ],
)
def test_a_bad_id_leaves_nothing_to_report_to(eval_id, says):
    with pytest.raises(InvalidTaskError, match=says) as caught:
        Task.from_document({**TASK, "eval_id": eval_id})
    assert caught.value.eval_id is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("code", None, "code is missing"),
        ("code", 1, "code must be a string, not a number"),
        ("code", ["print()"], "not an array"),
        ("code", {}, "not an object"),
        ("code", False, "not a boolean"),
        ("language", 3, "language must be"),
        ("engine", {}, "engine must be"),
        ("stdin", 0, "stdin must be"),
        ("args", "a", "args must be an array of strings"),
        ("args", [1], "args must be an array of strings"),
        ("args", ["a\0b"], "args must not contain NUL"),
        ("args", ["a"] * 101, "args must be at most 100, of 65536 bytes together"),
        ("args", ["é" * 40_000], "args must be at most 100, of 65536 bytes together"),
        ("files", [], "files must be an object of names and contents, not an array"),
        ("files", {str(n): "" for n in range(101)}, "files must be at most 100, not 101"),
        ("files", {"/etc/passwd": ""}, "'/etc/passwd': its name is not a relative path"),
        ("files", {"a/../b": ""}, "its name is not a plain path"),
        ("files", {"./a": ""}, "its name is not a plain path"),
        ("files", {"a//b": ""}, "its name is not a plain path"),
        ("files", {"a/": ""}, "its name is not a plain path"),
        ("files", {"": ""}, "its name is empty"),
        ("files", {"a\0": ""}, "its name is not printable"),
        ("files", {"a\nb": ""}, "its name is not printable"),
        ("files", {"\ud800": ""}, "its name is not printable"),
        ("files", {"é" * 128: ""}, "its name is longer than 255 bytes"),
        ("files", {"a/b": "", "a": ""}, "'a': its name is also the folder of another file"),
        ("files", {"a": 1}, "must be a string, or an object with its content"),
        ("files", {"a": {"base64": "?"}}, "must be a string, or an object with its content"),
        ("files", {"a": {"base64": "é"}}, "must be a string, or an object with its content"),
        ("files", {"a": {"text": "x"}}, "must be a string, or an object with its content"),
        ("timeout", 0, "more than 0 seconds"),
        ("timeout", -1, "more than 0 seconds, not -1"),
        ("timeout", -(10**400), "not -inf"),
        ("timeout", -math.inf, "not -inf"),
        ("timeout", math.nan, "not nan"),
        ("timeout", "30", "timeout must be a number of seconds, not a string"),
        ("timeout", True, "not a boolean"),
        ("timeout", [30], "not an array"),
    ],
)
def test_a_bad_field_is_named_and_can_be_reported(field, value, says):
    with pytest.raises(InvalidTaskError, match=says) as caught:
        Task.from_document({**TASK, field: value})
    assert caught.value.eval_id == "e1"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_arguments_and_files_are_read_and_shown_again():
    files = {"a.txt": "text", "b/c.bin": {"base64": "/wA="}, "odd": "\ud800", "empty": ""}
    task = Task.from_document({**TASK, "args": ["-x", "", "\ud800"], "files": files})
    assert task.args == ("-x", "", "\ud800")
    assert task.files == {"a.txt": b"text", "b/c.bin": b"\xff\0", "odd": b"\xed\xa0\x80", "empty": b""}
    shown = files_document(task.files)
    assert shown == {**files, "odd": {"base64": "7aCA"}}
    assert Task.from_document({**TASK, "files": shown}).files == task.files


def test_a_missing_code_is_invalid_and_an_empty_one_is_not():
    with pytest.raises(InvalidTaskError, match="code is missing"):
        Task.from_document({"eval_id": "e1"})
    assert Task.from_document({"eval_id": "e1", "code": ""}).code == ""


@pytest.mark.parametrize("code", ["\x00", "\ud800", "é\r\n"])
def test_odd_code_is_for_the_interpreter_to_judge(code):
    assert Task.from_document({**TASK, "code": code}).code == code


@pytest.mark.parametrize("timeout", [1e9, 10**400, math.inf, 601])
def test_a_huge_timeout_is_clamped_not_refused(timeout):
    task = Task.from_document({**TASK, "timeout": timeout})
    assert Limits().for_task(task, timeout_max=600.0).timeout_seconds == 600.0


def test_a_lease_is_read_and_a_broken_one_ignored():
    task = Task.from_document({**TASK, "lease": {"id": "l", "seconds": 30}})
    assert task.lease is not None
    assert (task.lease.id, task.lease.seconds) == ("l", 30.0)
    for lease in [
        "l",
        {"id": 1, "seconds": 1},
        {"id": "l"},
        *({"id": "l", "seconds": s} for s in (0, -1, 10**400, True)),
    ]:
        assert Task.from_document({**TASK, "lease": lease}).lease is None


@pytest.mark.parametrize("eval_id", ["a/b?c#d", "π", "a\ud800b", "x" * 10_000, "a\x00b", "../.."])
def test_any_text_is_an_id(eval_id):
    assert Task.from_document({**TASK, "eval_id": eval_id}).eval_id == eval_id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.integers().map(lambda n: n * 10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("eval_id", "code", "language", "engine", "timeout", "lease", "stdin")
SURROGATES = st.text(st.characters(), max_size=20)


@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON | SURROGATES)))
def test_arbitrary_json_is_a_sound_task_or_an_invalid_one(document):
    try:
        task = Task.from_document(document)
    except InvalidTaskError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert task.eval_id
        assert task.timeout > 0


def _result(
    stdout: bytes, stderr: bytes = b"", task: Task | None = None, phases: dict[str, float] | None = None
) -> Result:
    task = task or Task.from_document(TASK)
    run = Run(
        Verdict(Status.COMPLETED, Reason.EXITED, 0),
        Captured(stdout, len(stdout)),
        Captured(stderr, len(stderr)),
        runtime="runc",
        image="i",
        image_id="sha256:0",
        phases_ms=phases or {},
        container_id="c",
    )
    at = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    limits = Limits().for_task(task, 600.0)
    return Result.of(task, run, engine="docker", limits=limits, started=at, finished=at, worker_id="w")


def test_output_is_stdout_or_else_stderr():
    assert _result(b"out", b"err").output == "out"
    assert _result(b"", b"err").output == "err"


def test_bytes_that_are_not_utf8_make_both_streams_base64():
    document = _result(b"\xff", b"plain").document()
    assert (document["encoding"], document["stdout"], document["stderr"]) == ("base64", "/w==", "cGxhaW4=")


def test_the_document_carries_the_platforms_four_fields_first():
    document = _result(b"hi", phases={"create": 9.96}).document()
    assert {k: document[k] for k in ("id", "status", "output", "error")} == {
        "id": "e1",
        "status": "completed",
        "output": "hi",
        "error": None,
    }
    assert document["phases"] == {"create_ms": 10.0}
    assert document["started_at"] == "2026-01-31T12:00:00.000Z"


@given(st.binary(), st.binary(), SURROGATES, st.floats(min_value=0, exclude_min=True))
def test_every_result_is_strict_json(stdout, stderr, engine, timeout):
    task = Task.from_document({**TASK, "engine": engine, "timeout": timeout})
    document = _result(stdout, stderr, task).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_times_are_utc_with_milliseconds():
    cet = dt.timezone(dt.timedelta(hours=1))
    assert rfc3339(dt.datetime(2026, 1, 31, 13, 0, 0, 1999, cet)) == "2026-01-31T12:00:00.001Z"


def test_tasks_and_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Task.from_document(TASK).code = "other"
