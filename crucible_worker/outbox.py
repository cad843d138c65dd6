"""What is said about a task, to the queue and to the event bus, as documents. Pure."""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

from crucible_worker.model import Event, EventKind, Limits, Reason, Result, Task, rfc3339

COMPLETE, FAIL = "complete", "fail"
_IN_EVENT = ("id", "status", "output", "error", "exit_code", "worker_id", "stdout", "stderr")


def completion(task: Task, result: Result) -> dict[str, Any]:
    """The body of POST /tasks/{id}/complete."""
    return _fenced({"output": result.document()}, task)


def failure(task: Task | None, reason: Reason, message: str) -> dict[str, Any]:
    """The body of POST /tasks/{id}/fail. The error begins with its reason, for programs to read."""
    return _fenced({"error": f"{reason}: {message}"}, task)


def _fenced(body: dict[str, Any], task: Task | None) -> dict[str, Any]:
    """With the lease id where the queue gave one: it fences off whoever held the task before."""
    return body | {"lease": task.lease.id} if task is not None and task.lease is not None else body


def running(task: Task, limits: Limits, worker_id: str, container_id: str, now: dt.datetime) -> Event:
    """The event that a task's code has started."""
    data = {
        "eval_id": task.eval_id,
        "executor_id": worker_id,
        "container_id": container_id,
        "timeout": limits.timeout_seconds,
        "started_at": rfc3339(now),
    }
    return _event(EventKind.RUNNING, task.eval_id, data, now)


def completed(result: Result, now: dt.datetime) -> Event:
    """The event that there is a verdict."""
    document = result.document()
    data = {
        "eval_id": result.id,
        "status": result.status,
        "output": result.output,
        "error": result.error,
        "exit_code": result.exit_code,
        "executor_id": result.worker_id,
        "completed_at": result.finished_at,
        "metadata": {key: value for key, value in document.items() if key not in _IN_EVENT},
    }
    return _event(EventKind.COMPLETED, result.id, data, now)


def failed(eval_id: str, body: Mapping[str, Any], worker_id: str, now: dt.datetime) -> Event:
    """The event that no verdict could be reached; `body` is what the queue is told."""
    data = {"eval_id": eval_id, "error": body["error"], "executor_id": worker_id}
    return _event(EventKind.FAILED, eval_id, data, now)


def _event(kind: EventKind, eval_id: str, data: Mapping[str, Any], now: dt.datetime) -> Event:
    return Event(uuid.uuid4().hex, kind, eval_id, rfc3339(now), data)
