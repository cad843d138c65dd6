"""What travels: JSON in both directions, eval_ids in paths, preferences, and the reading of requests' documents."""

import datetime as dt
import json
import re
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from crucible_worker.embedded.entry import Entry, Filter, State
from crucible_worker.model import InvalidTaskError, Task, files_document, rfc3339

MAX_WAIT_SECONDS: Final = 60
# An encoded eval_id has to fit into the request line of every server and proxy on the way; most allow 64 KiB.
_MAX_ENCODED_ID: Final = 60_000
_MAX_PRIORITY: Final = 2**31 - 1
_LABEL = re.compile(r"[A-Za-z0-9._=/-]{1,63}")
_STATUS = {
    State.QUEUED: "queued",
    State.LEASED: "running",
    State.COMPLETED: "completed",
    State.FAILED: "failed",
}


class HttpError(Exception):
    """Answer with `status` and the message, one sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read completely. `wait` is the preferred wait in seconds; `alive` asks whether its client is."""

    eval_id: str
    query: Mapping[str, list[str]]
    body: bytes
    wait: int | None
    alive: Callable[[], bool]

    def document(self) -> dict[str, Any]:
        """The body as a JSON object. Raises HttpError (400)."""
        try:
            document = json.loads(self.body, parse_constant=_refuse_constant)
        except RecursionError:
            raise HttpError(400, "The body is nested too deeply.") from None
        except ValueError as error:
            raise HttpError(400, f"The body is not valid JSON: {error}.") from None
        if not isinstance(document, dict):
            raise HttpError(400, "The body must be a JSON object.")
        return document


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: JSON text, and what to take back where it cannot be delivered."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    undo: Callable[[], None] | None = None

    @classmethod
    def of(cls, status: int, document: object, headers: Mapping[str, str] | None = None) -> "Answer":
        """An answer that carries `document`."""
        return cls(status, encode(document), dict(headers or {}))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def encode(document: object) -> str:
    """JSON in ASCII, which carries NULs and lone surrogates. Raises HttpError (400) for what JSON cannot say."""
    try:
        return json.dumps(document, allow_nan=False)
    except ValueError:
        raise HttpError(400, "A number in the body is too large for JSON.") from None
    except RecursionError:
        raise HttpError(400, "The body is nested too deeply.") from None


def quote_id(eval_id: str) -> str:
    """An eval_id as one segment of a path. Any text is legal, lone surrogates too."""
    return urllib.parse.quote(eval_id, safe="", errors="surrogatepass")


def unquote_id(segment: str) -> str:
    """The inverse of `quote_id`. Raises HttpError (400) where the bytes are not UTF-8."""
    try:
        return urllib.parse.unquote(segment, errors="surrogatepass")
    except UnicodeDecodeError:
        raise HttpError(400, "The eval_id in the path is not percent-encoded UTF-8.") from None


def preferred_wait(header: str) -> int | None:
    """Seconds of the `wait` preference (RFC 7240, 4.3), capped; None where there is none or it is malformed."""
    for preference in header.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            text = value.strip().strip('"')
            return min(int(text), MAX_WAIT_SECONDS) if re.fullmatch(r"[0-9]{1,9}", text) else None
    return None


def task_filter(query: Mapping[str, list[str]]) -> Filter:
    """What a worker says it can run; each list may be repeated or comma-separated."""

    def names(key: str) -> AbstractSet[str] | None:
        found = frozenset(name.strip() for value in query.get(key, []) for name in value.split(",") if name.strip())
        return found or None

    return Filter(names("engines"), names("languages"), names("labels"))


@dataclass(frozen=True, slots=True)
class Submission:
    """A task to put into the queue."""

    task: Task
    priority: int
    labels: AbstractSet[str]


def submission(document: Mapping[str, Any]) -> Submission:
    """Read a submitted task. An eval_id is made where none is given. Raises HttpError (400) with one sentence."""
    if document.get("eval_id") is None:
        document = {**document, "eval_id": uuid.uuid4().hex}
    try:
        task = Task.from_document({**document, "lease": None})
    except InvalidTaskError as error:
        raise HttpError(400, f"The task is not valid: {error}.") from None
    if task.eval_id == "next":
        raise HttpError(400, "The eval_id must not be 'next', whose status could not be asked for.")
    if len(quote_id(task.eval_id)) > _MAX_ENCODED_ID:
        raise HttpError(400, f"The eval_id must not be longer than {_MAX_ENCODED_ID} characters, percent-encoded.")
    if task.timeout == float("inf"):
        raise HttpError(400, "The timeout is too large.")
    return Submission(task, _priority(document.get("priority")), _labels(document.get("labels")))


def _priority(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MAX_PRIORITY:
        raise HttpError(400, f"The priority must be a whole number from -{_MAX_PRIORITY} to {_MAX_PRIORITY}.")
    return value


def _labels(value: object) -> AbstractSet[str]:
    labels = [] if value is None else value
    if not isinstance(labels, list) or not all(isinstance(name, str) and _LABEL.fullmatch(name) for name in labels):
        raise HttpError(400, "The labels must be an array of names of letters, digits and ._=/- only.")
    return frozenset(labels)


def lease_id(document: Mapping[str, Any], *, required: bool = False) -> str | None:
    """The lease id in a worker's call. Raises HttpError (400)."""
    lease = document.get("lease")
    if lease is None and not required:
        return None
    if not isinstance(lease, str):
        raise HttpError(400, "The lease must be the id that came with the task.")
    return lease


def after(query: Mapping[str, list[str]]) -> int:
    """The sequence number behind which somebody wants to read on; -1 for all. Raises HttpError (400)."""
    text = query.get("after", ["-1"])[-1]
    if not re.fullmatch(r"-1|[0-9]{1,18}", text):
        raise HttpError(400, "The after in the query must be a sequence number.")
    return int(text)


def log_messages(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Live output as a worker tells it. Raises HttpError (400)."""
    messages = document.get("messages")
    if not isinstance(messages, list):
        raise HttpError(400, "The messages must be an array.")
    return [_log_message(message) for message in messages]


def _log_message(message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise HttpError(400, "A message must be an object.")
    sequence, content, final = message.get("sequence"), message.get("content"), message.get("is_final", False)
    if isinstance(sequence, float) and sequence.is_integer():
        sequence = int(sequence)
    if isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence < 2**63:
        raise HttpError(400, "The sequence of a message must be a whole number from 0.")
    if not isinstance(content, str) or not isinstance(final, bool):
        raise HttpError(400, "The content of a message must be a string, its is_final true or false.")
    rest = {name: message.get(name) for name in ("timestamp", "executor_id", "stream")}
    if not all(value is None or isinstance(value, str) for value in rest.values()):
        raise HttpError(400, "The timestamp, executor_id and stream of a message must be strings.")
    return {"sequence": sequence, "content": content, "is_final": final, **rest}


def logs_document(entry: Entry, messages: Sequence[Mapping[str, Any]], *, final: bool) -> dict[str, Any]:
    """Live output as a reader gets it."""
    return {"eval_id": entry.eval_id, "attempt": entry.attempts, "messages": list(messages), "is_final": final}


def number(seconds: float) -> float:
    """A whole number without its fraction, for readers that take `30.0` for no integer."""
    return int(seconds) if seconds.is_integer() else seconds


def task_document(task: Task) -> dict[str, Any]:
    """A claimed task as a worker gets it."""
    document: dict[str, Any] = {
        "eval_id": task.eval_id,
        "code": task.code,
        "language": task.language,
        "engine": task.engine,
        "timeout": number(task.timeout),
    }
    if task.stdin:
        document["stdin"] = task.stdin
    if task.args:
        document["args"] = list(task.args)
    if task.files:
        document["files"] = files_document(task.files)
    if task.lease:
        document["lease"] = {"id": task.lease.id, "seconds": number(task.lease.seconds)}
    return document


def status_document(entry: Entry) -> dict[str, Any]:
    """What is known of a task, without its code and outcome. Times are RFC 3339 or null."""
    return {
        "eval_id": entry.eval_id,
        "status": _STATUS[entry.state],
        "language": entry.language,
        "engine": entry.engine,
        "timeout": number(entry.timeout),
        "priority": entry.priority,
        "attempts": entry.attempts,
        "cancel": entry.cancel,
        "submitted_at": _time(entry.submitted),
        "started_at": _time(entry.started),
        "finished_at": _time(entry.settled),
        "lease_expires_at": _time(entry.expires),
    }


def counts_document(counts: Mapping[State, int]) -> dict[str, int]:
    """How many tasks there are by status."""
    return {_STATUS[state]: count for state, count in counts.items()}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(dt.datetime.fromtimestamp(seconds, dt.UTC))
