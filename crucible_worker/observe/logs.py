"""Log lines: a JSON object each, or a line for people. Secrets are masked, and nothing a task says can forge a line."""

import contextlib
import datetime as dt
import json
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from crucible_worker.model import rfc3339
from crucible_worker.observe.masking import Mask, plain, visible

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_TRACEBACK = 16_384
_FIRST = ("event", "level", "timestamp", "worker", "eval_id", "engine")


def configure(
    worker_id: str,
    fmt: str = "auto",
    level: str = "info",
    secrets: Callable[[], Iterable[str]] = tuple,
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process. May be called again.

    `fmt` is json, console, or auto (console on a terminal); `level` is a key of LEVELS; `stream` is stderr unless
    given. `secrets` is asked at each line, so that a key that was read again is masked too; earlier ones stay masked.
    """
    target = sys.stderr if stream is None else stream
    console = fmt == "console" or (fmt == "auto" and _is_terminal(target))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _errors(with_traceback=level == "debug"),
            _tidy(Mask(secrets), worker_id),
            render_console if console else render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Lines(target),
        context_class=dict,
        cache_logger_on_first_use=False,
    )


def get_logger() -> FilteringBoundLogger:
    """A logger: `log.info("task_claimed", engine="docker")`. It never raises, whatever becomes of the stream."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def task_context(eval_id: str, engine: str) -> contextlib.AbstractContextManager[None]:
    """Within it, every line of this thread says which task it is about."""
    return structlog.contextvars.bound_contextvars(eval_id=eval_id, engine=engine)


def _errors(*, with_traceback: bool) -> Processor:
    """`exc_info` as one line of `error`, and as a `traceback` where somebody is debugging."""

    def process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        given = event.pop("exc_info", None)
        error = given[1] if isinstance(given, tuple) else given
        if error is True:
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            event.setdefault("error", error)
            if with_traceback:
                event["traceback"] = "".join(traceback.format_exception(error))
        return event

    return process


def _tidy(mask: Mask, worker_id: str) -> Processor:
    """The event as plain, bounded, masked JSON values in a fixed order."""

    def process(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        trace = event.pop("traceback", None)
        tidied: EventDict = {
            "event": plain(event.pop("event", ""), mask),
            "level": {"warn": "warning", "exception": "error"}.get(method, method),
            "timestamp": rfc3339(dt.datetime.now(dt.UTC)),
            "worker": plain(worker_id, mask),
        }
        for name in sorted(event, key=lambda key: (key not in _FIRST, "")):
            tidied.setdefault(mask(name), plain(event[name], mask))
        if trace is not None:
            tidied["traceback"] = mask(trace)[-MAX_TRACEBACK:]
        return tidied

    return process


def render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One line of ASCII. JSON leaves DEL alone; terminals do not."""
    return json.dumps(event, ensure_ascii=True).replace("\x7f", "\\u007f")


def render_console(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One line for people: time, level, event, then the rest as key=value."""
    rest = [f"{name}={_quoted(value)}" for name, value in event.items() if name not in _FIRST[:4]]
    words = [event["timestamp"][11:-1], f"{event['level']:<7}", str(event["event"]), *rest]
    return visible(" ".join(words))


def _quoted(value: object) -> str:
    if isinstance(value, str) and value and not re.search(r'[\s"=]', value):
        return value
    return json.dumps(value, ensure_ascii=False)


class _Lines:
    """Writes whole lines. A log that cannot be written is lost; a task because of it must not be."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError), _WRITING:
            try:
                self._stream.write(f"{line}\n")
            except UnicodeEncodeError:
                self._stream.write(f"{line.encode('ascii', 'backslashreplace').decode()}\n")
            self._stream.flush()

    debug = info = warning = warn = error = exception = critical = log = msg


_WRITING = threading.Lock()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
