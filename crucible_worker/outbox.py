"""What is said about a task, to the queue and to the event bus, as documents. Pure."""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

from crucible_worker.model import Event, EventKind, Limits, Reason, Result, rfc3339

COMPLETE, FAIL, RELEASE = "complete", "fail", "release"
_IN_EVENT = ("id", "status", "output", "error", "exit_code", "worker_id", "stdout", "stderr", "artifacts")


def completion(result: Result, lease: str | None) -> dict[str, Any]:
    """The body of POST /tasks/{id}/complete. `lease` is the id of the lease, where the queue gave one."""
    return _fenced({"output": result.document()}, lease)


def failure(reason: Reason, message: str, lease: str | None) -> dict[str, Any]:
    """The body of POST /tasks/{id}/fail. The error begins with its reason, for programs to read."""
    return _fenced({"error": f"{reason}: {message}"}, lease)


def unfinished(reason: Reason, message: str, lease: str | None) -> tuple[str, dict[str, Any]]:
    """What is said of a task that the worker could not see through: given back where the queue leases, else failed."""
    if lease is not None:
        return RELEASE, {"lease": lease}
    return FAIL, failure(reason, message, None)


def _fenced(body: dict[str, Any], lease: str | None) -> dict[str, Any]:
    """With the lease: it fences off whoever held the task before."""
    return body if lease is None else body | {"lease": lease}


def running(eval_id: str, limits: Limits, worker_id: str, container_id: str, now: dt.datetime) -> Event:
    """The event that a task's code has started."""
    data = {
        "eval_id": eval_id,
        "executor_id": worker_id,
        "container_id": container_id,
        "timeout": limits.timeout_seconds,
        "started_at": rfc3339(now),
    }
    return _event(EventKind.RUNNING, eval_id, data, now)


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
