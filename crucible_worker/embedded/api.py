"""The queue's calls: which paths there are, and what each does to the store."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crucible_worker.embedded import openapi, wire
from crucible_worker.embedded.entry import ConflictError, Entry, State, UnknownTaskError
from crucible_worker.embedded.logbook import Logbook
from crucible_worker.embedded.store import Store
from crucible_worker.embedded.wire import Answer, HttpError, Request

# How often a waiting call looks for what nobody tells it about: expired leases, and clients that went away.
_TICK_SECONDS = 1.0
# How long after its result a task's last live output may come.
_LAST_WORDS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Route:
    """One call. Public ones need no key."""

    call: Callable[[Request], Answer]
    eval_id: str = ""
    public: bool = False


class Api:
    """The calls over one store. Any thread may call it; `close` ends all waiting."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._logbook = Logbook()
        self._changed = threading.Condition()
        self._closing = False
        self._calls: dict[tuple[str, ...], dict[str, Callable[[Request], Answer]]] = {
            ("tasks",): {"POST": self._submit, "DELETE": self._clear},
            ("tasks", "next"): {"GET": self._next},
            ("tasks", "{}"): {"GET": self._status, "DELETE": self._cancel},
            ("tasks", "{}", "result"): {"GET": self._result},
            ("tasks", "{}", "logs"): {"GET": self._logs, "POST": self._log},
            ("tasks", "{}", "complete"): {"POST": self._complete},
            ("tasks", "{}", "fail"): {"POST": self._fail},
            ("tasks", "{}", "heartbeat"): {"POST": self._heartbeat},
            ("tasks", "{}", "release"): {"POST": self._release},
            ("status",): {"GET": self._counts},
            ("health",): {"GET": self._health},
            ("openapi.json",): {"GET": self._openapi},
        }

    def close(self) -> None:
        """Answer those who wait at once, and let nobody wait any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def route(self, method: str, path: str) -> Route:
        """The call that `path`, still percent-encoded, stands for. Raises HttpError (400, 404 or 405)."""
        segments = tuple(path.removeprefix("/").split("/"))
        pattern = segments if segments in self._calls else (*segments[:1], "{}", *segments[2:])
        if pattern not in self._calls or (pattern != segments and not segments[1]):
            raise HttpError(404, "There is no such path; GET /openapi.json lists them.")
        eval_id = wire.unquote_id(segments[1]) if pattern != segments else ""
        calls = self._calls[pattern]
        if method not in calls:
            raise HttpError(405, f"{method} is not allowed here.", {"Allow": ", ".join(sorted(calls))})
        return Route(calls[method], eval_id, public=pattern in {("health",), ("openapi.json",)})

    def answer(self, route: Route, request: Request) -> Answer:
        """Do what is asked for. Raises HttpError for every answer that is not a success."""
        try:
            return route.call(request)
        except UnknownTaskError:
            raise HttpError(404, "No task has this eval_id.") from None
        except ConflictError as error:
            message = str(error)
            raise HttpError(409, f"{message[0].upper()}{message[1:]}.") from None
        except sqlite3.Error as error:
            raise HttpError(503, f"The queue's database fails: {error}.", {"Retry-After": "5"}) from None

    # What submitters call.

    def _submit(self, request: Request) -> Answer:
        new = wire.submission(request.document())
        entry, created = self._store.submit(new.task, new.priority, new.labels)
        self._tell()
        return Answer.of(201 if created else 200, wire.status_document(entry))

    def _status(self, request: Request) -> Answer:
        return Answer.of(200, wire.status_document(self._store.get(request.eval_id)))

    def _result(self, request: Request) -> Answer:
        def settled() -> Answer | None:
            entry = self._store.get(request.eval_id)
            return Answer(200, _outcome(entry)) if entry.state.settled else None

        return self._wait(request, settled) or self._applied(
            request, Answer.of(202, wire.status_document(self._store.get(request.eval_id)))
        )

    def _logs(self, request: Request) -> Answer:
        after = wire.after(request.query)

        def printed() -> Answer | None:
            entry = self._store.get(request.eval_id)
            messages, final = self._logbook.read(request.eval_id, after)
            final |= entry.settled is not None and self._store.now() - entry.settled > _LAST_WORDS_SECONDS
            return Answer.of(200, wire.logs_document(entry, messages, final=final)) if messages or final else None

        nothing = Answer.of(200, wire.logs_document(self._store.get(request.eval_id), [], final=False))
        return self._wait(request, printed) or self._applied(request, nothing)

    def _cancel(self, request: Request) -> Answer:
        running = self._store.cancel(request.eval_id) is State.LEASED
        self._tell()
        status = "cancelling" if running else "cancelled"
        return Answer.of(202 if running else 200, {"eval_id": request.eval_id, "status": status})

    def _clear(self, _: Request) -> Answer:
        deleted = self._store.clear()
        self._tell()
        return Answer.of(200, {"deleted": deleted})

    # What workers call.

    def _next(self, request: Request) -> Answer:
        wanted = wire.task_filter(request.query)

        def claimed() -> Answer | None:
            task = self._store.claim(wanted)
            if task is None:
                return None
            eval_id, lease = task.eval_id, task.lease.id if task.lease else ""
            self._logbook.restart(eval_id)
            return replace(Answer.of(200, wire.task_document(task)), undo=lambda: self._take_back(eval_id, lease))

        return self._wait(request, claimed) or self._applied(request, Answer.of(200, None))

    def _complete(self, request: Request) -> Answer:
        document = request.document()
        if "output" not in document:
            raise HttpError(400, "The output is missing.")
        return self._settle(request, State.COMPLETED, document["output"], wire.lease_id(document))

    def _fail(self, request: Request) -> Answer:
        document = request.document()
        if not isinstance(document.get("error"), str):
            raise HttpError(400, "The error must be a string.")
        return self._settle(request, State.FAILED, document["error"], wire.lease_id(document))

    def _settle(self, request: Request, state: State, outcome: object, lease: str | None) -> Answer:
        self._store.settle(request.eval_id, state, wire.encode(outcome), lease)
        self._tell()
        return Answer.of(200, {"eval_id": request.eval_id, "status": state.value})

    def _heartbeat(self, request: Request) -> Answer:
        lease = wire.lease_id(request.document(), required=True) or ""
        cancel = self._store.renew(request.eval_id, lease)
        return Answer.of(200, {"seconds": wire.number(self._store.lease_seconds), "cancel": cancel})

    def _release(self, request: Request) -> Answer:
        lease = wire.lease_id(request.document(), required=True) or ""
        self._store.release(request.eval_id, lease)
        self._tell()
        return Answer.of(200, {"eval_id": request.eval_id, "status": "released"})

    def _log(self, request: Request) -> Answer:
        messages = wire.log_messages(request.document())
        self._store.get(request.eval_id)
        self._logbook.add(request.eval_id, messages)
        self._tell()
        return Answer.of(200, {"eval_id": request.eval_id, "messages": len(messages)})

    # What operators call.

    def _counts(self, _: Request) -> Answer:
        return Answer.of(200, wire.counts_document(self._store.counts()))

    def _health(self, _: Request) -> Answer:
        self._store.counts()
        return Answer.of(200, {"status": "healthy"})

    def _openapi(self, _: Request) -> Answer:
        return Answer.of(200, openapi.document())

    def _take_back(self, eval_id: str, lease: str) -> None:
        """Release a task whose claimant never got it."""
        try:
            self._store.release(eval_id, lease)
        except (UnknownTaskError, ConflictError):
            return
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, request: Request, attempt: Callable[[], Answer | None]) -> Answer | None:
        """The first answer that `attempt` has, within the time the client prefers; None where there is none.

        A client that went away is not served: what it cannot receive must not be claimed for it.
        """
        deadline = time.monotonic() + (request.wait or 0)
        # The lock is held from the attempt to the wait, so that no change falls between them.
        with self._changed:
            while not self._closing and request.alive():
                answer = attempt()
                remaining = deadline - time.monotonic()
                if answer is not None:
                    return self._applied(request, answer)
                if remaining <= 0:
                    return None
                self._changed.wait(min(remaining, _TICK_SECONDS))
        return None

    @staticmethod
    def _applied(request: Request, answer: Answer) -> Answer:
        """The answer, saying that its client's preference was heard (RFC 7240, 3)."""
        headers: Mapping[str, str] = {"Preference-Applied": f"wait={request.wait}"} if request.wait is not None else {}
        return replace(answer, headers={**answer.headers, **headers})


def _outcome(entry: Entry) -> str:
    if entry.state is State.COMPLETED:
        return entry.outcome or "null"
    error = json.loads(entry.outcome or '""')
    return wire.encode({"id": entry.eval_id, "status": "error", "error": error})
