"""The OpenAPI document of the embedded queue: every call, every answer."""

from typing import Any

from crucible_worker import __version__
from crucible_worker.model import MAX_ARGS, MAX_FILES

_JSON = "application/json"
_ERRORS = {
    "400": ("BadRequest", "The request is malformed; `error` says in one sentence what is wrong."),
    "401": ("KeyRefused", "The X-API-Key header is missing or wrong."),
    "404": ("Unknown", "No task has this eval_id, or not any more."),
    "405": ("WrongMethod", "The path takes other methods; see the Allow header."),
    "409": ("Conflict", "The lease is lost, or the task is already settled, or another one has its eval_id."),
    "411": ("LengthRequired", "A body needs a Content-Length."),
    "413": ("TooLarge", "The body is larger than 64 MiB."),
    "503": ("Unavailable", "The database cannot be used at the moment; try again."),
}


def document() -> dict[str, Any]:
    """The whole document, OpenAPI 3.1.0."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Crucible embedded queue",
            "version": __version__,
            "description": "Evaluation tasks on one machine: submitted, leased by workers, settled.",
        },
        "security": [{"key": []}],
        "paths": {
            "/tasks": {"post": _submit(), "delete": _clear()},
            "/tasks/next": {"get": _next()},
            "/tasks/{eval_id}": _of_task(get=_status(), delete=_cancel()),
            "/tasks/{eval_id}/result": _of_task(get=_result()),
            "/tasks/{eval_id}/logs": _of_task(get=_logs(), post=_log()),
            "/tasks/{eval_id}/complete": _of_task(
                post=_call(
                    "completeTask",
                    "There is a verdict. The same again, with the same lease, changes nothing and succeeds.",
                    {"200": ("Recorded, now or before.", _ref("Settled"))},
                    body=_object(required=["output"], output={"description": "The RESULT."}, lease=_LEASE_ID),
                    errors="404 409",
                )
            ),
            "/tasks/{eval_id}/fail": _of_task(
                post=_call(
                    "failTask",
                    "No verdict could be reached. The same again, with the same lease, changes nothing and succeeds.",
                    {"200": ("Recorded, now or before.", _ref("Settled"))},
                    body=_object(required=["error"], error={"type": "string"}, lease=_LEASE_ID),
                    errors="404 409",
                )
            ),
            "/tasks/{eval_id}/heartbeat": _of_task(post=_heartbeat()),
            "/tasks/{eval_id}/release": _of_task(
                post=_call(
                    "releaseTask",
                    "Give the task back to its old place in the queue.",
                    {"200": ("Given back.", _ref("Settled"))},
                    body=_object(required=["lease"], lease={"type": "string"}),
                    errors="404 409",
                )
            ),
            "/status": {"get": _call("countTasks", "Tasks by status.", {"200": ("Counts.", _ref("Counts"))})},
            "/health": {"get": _public("health", "Whether the queue works.", _ref("Health"), "503")},
            "/openapi.json": {"get": _public("openapi", "This document.", {"type": "object"}, "")},
        },
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            "schemas": _schemas(),
            "responses": {
                name: {"description": text, "content": {_JSON: {"schema": _ref("Error")}}}
                for name, text in _ERRORS.values()
            },
        },
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON schemas
    return {"type": "object", "required": list(properties) if required is None else required, "properties": properties}


def _nullable(kind: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON schema keywords
    return {"anyOf": [{"type": kind, **more}, {"type": "null"}]}


_LEASE_ID = _nullable("string")
_WAIT = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N` waits up to N seconds, at most 60 (RFC 7240).",
    "schema": {"type": "string", "examples": ["wait=25"]},
}


def _call(
    operation: str,
    summary: str,
    answers: dict[str, tuple[str, dict[str, Any]]],
    *,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    errors: str = "",
) -> dict[str, Any]:
    codes = sorted({"400", "401", "405", "411", "413", "503", *errors.split()})
    call: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "responses": {
            code: {"description": text, "content": {_JSON: {"schema": schema}}}
            for code, (text, schema) in answers.items()
        }
        | {code: {"$ref": f"#/components/responses/{_ERRORS[code][0]}"} for code in codes},
    }
    if body is not None:
        call["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    if parameters:
        call["parameters"] = parameters
    return call


def _public(operation: str, summary: str, schema: dict[str, Any], errors: str) -> dict[str, Any]:
    return _call(operation, summary, {"200": ("Yes.", schema)}, errors=errors) | {"security": []}


def _of_task(**calls: dict[str, Any]) -> dict[str, Any]:
    parameter = {
        "name": "eval_id",
        "in": "path",
        "required": True,
        "description": "Any text, percent-encoded, slashes too.",
        "schema": {"type": "string", "minLength": 1, "not": {"const": "next"}},
    }
    return {"parameters": [parameter], **calls}


def _submit() -> dict[str, Any]:
    return _call(
        "submitTask",
        "Put a task into the queue. The identical task again is no second one.",
        {"201": ("Queued.", _ref("Status")), "200": ("It was there before.", _ref("Status"))},
        body=_ref("Submission"),
        errors="409",
    )


def _clear() -> dict[str, Any]:
    return _call(
        "clearTasks",
        "Forget every queued task.",
        {"200": ("Done.", _object(deleted={"type": "integer", "minimum": 0}))},
    )


def _next() -> dict[str, Any]:
    def names(name: str, what: str) -> dict[str, Any]:
        text = f"{what}, separated by commas; without it, any."
        return {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}

    return _call(
        "claimTask",
        "Lease the next task: the first of those with the highest priority.",
        {"200": ("A task, or null where there is none.", {"anyOf": [_ref("Task"), {"type": "null"}]})},
        parameters=[
            _WAIT,
            names("engines", "Engines this worker has"),
            names("languages", "Languages this worker has"),
            names("labels", "Labels this worker has; a task's own must all be among them"),
        ],
    )


def _status() -> dict[str, Any]:
    return _call("getTask", "Where a task stands.", {"200": ("Its status.", _ref("Status"))}, errors="404")


def _cancel() -> dict[str, Any]:
    return _call(
        "cancelTask",
        "Forget a queued task, or have a running one's next heartbeat say that it is to be cancelled.",
        {"200": ("Forgotten.", _ref("Settled")), "202": ("Its worker will be told.", _ref("Settled"))},
        errors="404 409",
    )


def _result() -> dict[str, Any]:
    return _call(
        "getResult",
        "What a worker reported.",
        {
            "200": ("The RESULT; of a failed task `{id, status: error, error}`.", {}),
            "202": ("Not settled yet.", _ref("Status")),
        },
        parameters=[_WAIT],
        errors="404",
    )


def _logs() -> dict[str, Any]:
    after = {
        "name": "after",
        "in": "query",
        "description": "The sequence number of the last message that is known already; -1 for none.",
        "schema": {"type": "integer", "minimum": -1, "maximum": 10**18 - 1},
    }
    return _call(
        "getLogs",
        "What a running task has printed so far, the newest 256 KiB, where its worker tells (live_logs=queue).",
        {"200": ("Messages in order; none yet where there are none.", _ref("Logs"))},
        parameters=[_WAIT, after],
        errors="404",
    )


def _log() -> dict[str, Any]:
    return _call(
        "addLogs",
        "A worker tells what a task has printed. A repeated message changes nothing.",
        {"200": ("Taken.", _object(eval_id={"type": "string"}, messages={"type": "integer", "minimum": 0}))},
        body=_object(messages={"type": "array", "items": _ref("Message")}),
        errors="404",
    )


def _heartbeat() -> dict[str, Any]:
    return _call(
        "renewLease",
        "Renew a lease. 404 and 409 mean that it is lost.",
        {"200": ("Renewed.", _object(seconds={"type": "number"}, cancel={"type": "boolean"}))},
        body=_object(lease={"type": "string"}),
        errors="404 409",
    )


def _schemas() -> dict[str, Any]:
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    time = _nullable("string", format="date-time")
    timeout = {"type": "number", "exclusiveMinimum": 0}
    eval_id = {"type": "string", "minLength": 1}
    label = {"type": "string", "pattern": "^[A-Za-z0-9._=/-]{1,63}$"}
    arg = {"type": "string", "pattern": "^[^\\u0000]*$"}
    content = {"anyOf": [text, _object(base64={"type": "string", "contentEncoding": "base64"})]}
    statuses = ["queued", "running", "completed", "failed"]
    return {
        "Error": _object(error={"type": "string", "minLength": 1}),
        "Submission": _object(
            required=["code"],
            eval_id=_nullable("string", minLength=1),
            code=text,
            language=_nullable("string"),
            engine=_nullable("string"),
            timeout=_nullable("number", exclusiveMinimum=0),
            priority=_nullable("integer", minimum=-(2**31) + 1, maximum=2**31 - 1),
            stdin=_nullable("string"),
            args=_nullable("array", items=arg, maxItems=MAX_ARGS),
            files=_nullable("object", additionalProperties=content, maxProperties=MAX_FILES),
            labels=_nullable("array", items=label),
        ),
        "Task": _object(
            required=["eval_id", "code", "language", "engine", "timeout", "lease"],
            eval_id=eval_id,
            code=text,
            language=text,
            engine=text,
            timeout=timeout,
            stdin=text,
            args={"type": "array", "items": arg},
            files={"type": "object", "additionalProperties": content},
            lease=_object(id=text, seconds=timeout),
        ),
        "Status": _object(
            eval_id=eval_id,
            status={"enum": statuses},
            language=text,
            engine=text,
            timeout=timeout,
            priority={"type": "integer"},
            attempts=count,
            cancel={"type": "boolean"},
            submitted_at=time,
            started_at=time,
            finished_at=time,
            lease_expires_at=time,
        ),
        "Settled": _object(
            eval_id=eval_id, status={"enum": ["completed", "failed", "released", "cancelled", "cancelling"]}
        ),
        "Message": _object(
            required=["sequence", "content"],
            sequence={"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
            content=text,
            is_final={"type": "boolean"},
            timestamp=_nullable("string"),
            executor_id=_nullable("string"),
            stream=_nullable("string"),
        ),
        "Logs": _object(
            eval_id=eval_id,
            attempt=count,
            messages={"type": "array", "items": _ref("Message")},
            is_final={"type": "boolean"},
        ),
        "Counts": _object(queued=count, running=count, completed=count, failed=count),
        "Health": _object(status={"const": "healthy"}),
    }
