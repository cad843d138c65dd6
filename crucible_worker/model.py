"""The vocabulary: tasks, limits, verdicts and results. Frozen data without I/O; imports nothing of ours."""

import base64
import dataclasses
import datetime as dt
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What a task gets where it says nothing; fixed by the Queue Service's protocol.
DEFAULT_LANGUAGE = "python"
DEFAULT_ENGINE = "docker"
DEFAULT_TIMEOUT = 30.0
PYTHON_FILE = "main.py"  # what tracebacks call the code

# How many a task may bring along. Their sizes are bounded by the sandbox that has to hold them.
MAX_FILES = 100
MAX_ARGS = 100
MAX_NAME_BYTES = 255  # of a whole path, as ext4 and others have it for one name
MAX_ARG_BYTES = 64 << 10  # of all together; Linux takes 128 KiB for a single one


class Status(enum.StrEnum):
    """How an evaluation ended, in the platform's words."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    ERROR = "error"


class Reason(enum.StrEnum):
    """Why an evaluation ended as it did. A closed set and public API."""

    EXITED = "exited"
    EXITED_NONZERO = "exited_nonzero"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_LIMIT = "output_limit"
    PROCESS_LIMIT = "process_limit"
    CANCELLED = "cancelled"

    ENGINE_UNAVAILABLE = "engine_unavailable"
    IMAGE_MISSING = "image_missing"
    IMAGE_REFUSED = "image_refused"
    INVALID_TASK = "invalid_task"
    LANGUAGE_UNKNOWN = "language_unknown"
    ENGINE_ERROR = "engine_error"
    WORKER_SHUTDOWN = "worker_shutdown"
    WORKER_CRASHED = "worker_crashed"
    POISON = "poison"


class InvalidTaskError(ValueError):
    """A queue handed over something that is not a task. `eval_id` is None where it cannot even be reported."""

    def __init__(self, message: str, eval_id: str | None) -> None:
        super().__init__(message)
        self.eval_id = eval_id


@dataclass(frozen=True, slots=True)
class Language:
    """How code of one language is run.

    Without a `command`, the image's python3 runs it. With one, the code is stored as `file` in /sandbox, and the
    command is run there with the task's arguments behind it; the image then needs a POSIX shell. `exec` allows
    programs in /sandbox to be executed, for languages that compile. `preload` are Python modules that a sandbox imports
    before it takes its code.
    """

    image: str
    command: tuple[str, ...] = ()
    file: str = PYTHON_FILE
    exec: bool = False
    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim that the queue takes back unless it is renewed within `seconds`. `id` fences off older claims."""

    id: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """One evaluation to run. `timeout` is in seconds, as asked for; limits may clamp it.

    `files` are put beside the code: relative names, as `refused_name` has them, with their contents.
    """

    eval_id: str
    code: str
    language: str = DEFAULT_LANGUAGE
    engine: str = DEFAULT_ENGINE
    timeout: float = DEFAULT_TIMEOUT
    lease: Lease | None = None
    stdin: str = ""
    args: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def from_document(cls, document: object) -> "Task":
        """Read a task as a queue sends it, ignoring unknown fields.

        Raises InvalidTaskError with one sentence about the first thing that is wrong.
        """
        if not isinstance(document, Mapping):
            raise InvalidTaskError(f"a task must be a JSON object, not {_kind(document)}", None)
        eval_id = document.get("eval_id")
        if not isinstance(eval_id, str) or not eval_id:
            wrong = "an empty one" if eval_id == "" else _kind(eval_id)
            raise InvalidTaskError(f"eval_id must be a non-empty string, not {wrong}", None)

        def text(name: str, default: str) -> str:
            value = document.get(name)
            if value is None:
                return default
            if not isinstance(value, str):
                raise InvalidTaskError(f"{name} must be a string, not {_kind(value)}", eval_id)
            return value

        if document.get("code") is None:
            raise InvalidTaskError("code is missing", eval_id)
        return cls(
            eval_id=eval_id,
            code=text("code", ""),
            language=text("language", DEFAULT_LANGUAGE),
            engine=text("engine", DEFAULT_ENGINE),
            timeout=_timeout(document.get("timeout"), eval_id),
            lease=_lease(document.get("lease")),
            stdin=text("stdin", ""),
            args=_args(document.get("args"), eval_id),
            files=_files(document.get("files"), eval_id),
        )


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def _timeout(value: object, eval_id: str) -> float:
    if value is None:
        return DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTaskError(f"timeout must be a number of seconds, not {_kind(value)}", eval_id)
    seconds = _float(value)
    if not seconds > 0:  # NaN is not, either
        raise InvalidTaskError(f"timeout must be more than 0 seconds, not {seconds:g}", eval_id)
    return seconds


def _args(value: object, eval_id: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(arg, str) for arg in value):
        raise InvalidTaskError("args must be an array of strings", eval_id)
    if len(value) > MAX_ARGS or sum(len(as_bytes(arg)) for arg in value) > MAX_ARG_BYTES:
        raise InvalidTaskError(f"args must be at most {MAX_ARGS}, of {MAX_ARG_BYTES} bytes together", eval_id)
    if any("\0" in arg for arg in value):
        raise InvalidTaskError("args must not contain NUL, which no program can be given", eval_id)
    return tuple(value)


def _files(value: object, eval_id: str) -> Mapping[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTaskError(f"files must be an object of names and contents, not {_kind(value)}", eval_id)
    if len(value) > MAX_FILES:
        raise InvalidTaskError(f"files must be at most {MAX_FILES}, not {len(value)}", eval_id)
    folders = {"/".join(name.split("/")[:depth]) for name in value for depth in range(1, name.count("/") + 1)}
    files = {}
    for name, content in value.items():
        why = "also the folder of another file" if name in folders else refused_name(name)
        if why:
            raise InvalidTaskError(f"files must not contain {name[:60]!r}: its name is {why}", eval_id)
        try:
            files[name] = _content(content)
        except ValueError:
            message = f'files[{name[:60]!r}] must be a string, or an object with its content as "base64"'
            raise InvalidTaskError(message, eval_id) from None
    return files


def _content(value: object) -> bytes:
    if isinstance(value, Mapping) and isinstance(encoded := value.get("base64"), str):
        return base64.b64decode(encoded, validate=True)
    if isinstance(value, str):
        return as_bytes(value)
    raise ValueError


def files_document(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Files as a task's document has them: text where they are UTF-8, otherwise base64 (RFC 4648)."""
    document: dict[str, Any] = {}
    for name, content in files.items():
        try:
            document[name] = content.decode()
        except UnicodeDecodeError:
            document[name] = {"base64": base64.b64encode(content).decode()}
    return document


def refused_name(name: str) -> str | None:
    """Why a name is none of a file below a folder, to be read after "is"; None where it is one."""
    if not name.isprintable():
        return "not printable"
    if name.startswith("/") or not name:
        return "not a relative path" if name else "empty"
    if {"", ".", ".."} & set(name.split("/")):
        return "not a plain path"
    return f"longer than {MAX_NAME_BYTES} bytes" if len(name.encode()) > MAX_NAME_BYTES else None


def as_bytes(text: str) -> bytes:
    """Text as it came in JSON. Lone surrogates become bytes that are no UTF-8, for others to judge."""
    return text.encode("utf-8", "surrogatepass")


def _float(value: float) -> float:
    """JSON numbers have no largest one; a float has."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _lease(value: object) -> Lease | None:
    if not isinstance(value, Mapping):
        return None
    lease_id, seconds = value.get("id"), value.get("seconds")
    if not isinstance(lease_id, str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    lasting = _float(seconds)
    return Lease(lease_id, lasting) if math.isfinite(lasting) and lasting > 0 else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. Sizes in bytes, times in seconds.

    `output_bytes` is what is kept of each stream; past `output_limit_bytes` over both streams the sandbox is killed.
    `tmp_bytes` is the size of each writable tmpfs. `file_bytes` and `open_files` hold for each process.
    `artifact_bytes` is how much of what the code leaves in /sandbox/out is taken along; 0 takes nothing.
    """

    timeout_seconds: float = 30.0
    memory_bytes: int = 256 << 20
    cpus: float = 1.0
    processes: int = 64
    open_files: int = 256
    file_bytes: int = 64 << 20
    tmp_bytes: int = 64 << 20
    output_bytes: int = 1 << 20
    output_limit_bytes: int = 32 << 20
    artifact_bytes: int = 1 << 20

    def for_task(self, task: Task, timeout_max: float) -> "Limits":
        """These limits with the task's own timeout, clamped to `timeout_max` seconds."""
        return dataclasses.replace(self, timeout_seconds=min(task.timeout, timeout_max))


@dataclass(frozen=True, slots=True)
class Captured:
    """What was kept of one output stream, and how many bytes it had in all."""

    data: bytes = b""
    total_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something that the code left in /sandbox/out: a file with its `data`, or why it was `refused`."""

    name: str
    size: int
    data: bytes = b""
    refused: str | None = None

    def document(self) -> dict[str, Any]:
        """The artifact as JSON-ready values."""
        content = {"refused": self.refused} if self.refused else {"base64": base64.b64encode(self.data).decode()}
        return {"name": self.name, "size": self.size, **content}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one run. `exit_code` and `signal` are None where unknown."""

    status: Status
    reason: Reason
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """All that an engine knows of one sandbox's life. Times in milliseconds, memory in bytes, None where unknown."""

    verdict: Verdict
    stdout: Captured
    stderr: Captured
    runtime: str
    image: str
    image_id: str
    phases_ms: Mapping[str, float]
    container_id: str
    warm: bool = False
    adopted: bool = False
    cpu_ms: float | None = None
    peak_memory_bytes: int | None = None
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The RESULT document of the wire; a superset of the platform's `{id, status, output, error}`."""

    id: str
    status: Status
    reason: Reason
    output: str
    error: str | None
    exit_code: int | None
    signal: int | None
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    encoding: str
    engine: str
    requested_engine: str
    fallback: bool
    runtime: str
    image: str
    image_id: str
    warm: bool
    started_at: str
    finished_at: str
    duration_ms: float
    phases: Mapping[str, float] = field(default_factory=dict)
    cpu_ms: float | None = None
    peak_memory_bytes: int | None = None
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    limits: Mapping[str, float] = field(default_factory=dict)
    worker_id: str = ""
    attempt: int = 1
    adopted: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        run: Run,
        *,
        engine: str,
        limits: Limits,
        started: dt.datetime,
        finished: dt.datetime,
        worker_id: str,
        attempt: int = 1,
    ) -> "Result":
        """Put together the result of one task. `started` and `finished` are aware datetimes in UTC."""
        encoding, stdout, stderr = _texts(run.stdout.data, run.stderr.data)
        return cls(
            id=task.eval_id,
            status=run.verdict.status,
            reason=run.verdict.reason,
            output=stdout or stderr,
            error=run.verdict.error,
            exit_code=run.verdict.exit_code,
            signal=run.verdict.signal,
            stdout=stdout,
            stderr=stderr,
            stdout_bytes=run.stdout.total_bytes,
            stderr_bytes=run.stderr.total_bytes,
            truncated=run.stdout.truncated or run.stderr.truncated,
            encoding=encoding,
            engine=engine,
            requested_engine=task.engine,
            fallback=engine != task.engine,
            runtime=run.runtime,
            image=run.image,
            image_id=run.image_id,
            warm=run.warm,
            started_at=rfc3339(started),
            finished_at=rfc3339(finished),
            duration_ms=round((finished - started).total_seconds() * 1000, 1),
            phases={f"{name}_ms": round(ms, 1) for name, ms in run.phases_ms.items()},
            cpu_ms=run.cpu_ms,
            peak_memory_bytes=run.peak_memory_bytes,
            artifacts=[artifact.document() for artifact in run.artifacts],
            limits=dataclasses.asdict(limits),
            worker_id=worker_id,
            attempt=attempt,
            adopted=run.adopted,
        )

    def document(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def _texts(stdout: bytes, stderr: bytes) -> tuple[str, str, str]:
    """Both streams as text: UTF-8 where both are, otherwise both in base64 (RFC 4648), since any bytes are legal."""
    try:
        return "utf-8", stdout.decode(), stderr.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(stdout).decode(), base64.b64encode(stderr).decode()


def rfc3339(moment: dt.datetime) -> str:
    """An aware datetime as RFC 3339 in UTC with milliseconds, such as 2026-01-31T12:00:00.000Z."""
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventKind(enum.StrEnum):
    """The three things that are told about an evaluation."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell the event bus. `id` is unique, `time` RFC 3339, `data` what the Storage Worker reads."""

    id: str
    kind: EventKind
    eval_id: str
    time: str
    data: Mapping[str, Any]
