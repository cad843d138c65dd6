"""The Queue Service over HTTP: claim, complete, fail."""

import math
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_worker.errors import AlreadySettledError
from crucible_worker.model import Lease, Task
from crucible_worker.transport import HttpTransport

POLL_SECONDS = 10.0  # for an answer to a poll, beyond what it may wait for a task
BEAT_SECONDS = 10.0
POST_SECONDS = 60.0  # for a result of several megabytes over a slow line
_EMPTY = frozenset({204, 404})
_SETTLED = frozenset({404, 409, 410})


class HttpQueue:
    """A Queue Service as DESIGN's wire describes it; its extensions are used where the server offers them."""

    def __init__(
        self, transport: HttpTransport, url: str, *, wait: float, engines: tuple[str, ...], languages: tuple[str, ...]
    ) -> None:
        """`wait` is how many seconds a poll may wait for a task; 0 never asks for that."""
        self._transport = transport
        self._url = url
        self._wait = wait
        query = urllib.parse.urlencode({"engines": ",".join(engines), "languages": ",".join(languages)}, safe=",")
        self._next = f"{url}/tasks/next?{query}"
        self.poll_seconds = wait + POLL_SECONDS

    def claim(self) -> Task | None:
        """Take the next task, or None where there is none. Read to its end in any case: the queue pops destructively.

        Raises InvalidTaskError for what is no task, otherwise as `Response.check`.
        """
        # RFC 7240; a server that does not know it answers at once.
        headers = {"Prefer": f"wait={math.ceil(self._wait)}"} if self._wait else {}
        response = self._transport.request("GET", self._next, headers=headers, deadline=self.poll_seconds)
        if response.status in _EMPTY:
            return None
        document = response.check().json()
        return None if document is None else Task.from_document(document)

    def settle(self, kind: str, eval_id: str, body: Mapping[str, Any] | bytes) -> None:
        """POST `complete`, `fail` or `release` for a task. Bytes are JSON as it is sent: a result may be large.

        Raises AlreadySettledError where the queue does not know the task any more, otherwise as `Response.check`.
        """
        response = self._transport.request("POST", self._task(eval_id, kind), json=body, deadline=POST_SECONDS)
        if response.status in _SETTLED:
            raise AlreadySettledError(f"the queue answered {response.status}")
        response.check()
        answer = response.json() if response.body.strip() else None
        if isinstance(answer, dict) and answer.get("status") == "not_found":
            raise AlreadySettledError("the queue answered not_found")

    def renew(self, eval_id: str, lease: Lease) -> bool:
        """Renew a lease. Returns whether the task is to be cancelled.

        Raises AlreadySettledError where the lease is lost, otherwise as `Response.check`.
        """
        deadline = min(max(lease.seconds / 3, 1.0), BEAT_SECONDS)
        url = self._task(eval_id, "heartbeat")
        response = self._transport.request("POST", url, json={"lease": lease.id}, deadline=deadline)
        if response.status in _SETTLED:
            raise AlreadySettledError(f"the queue answered {response.status}")
        response.check()
        answer = response.json() if response.body.strip() else None
        return isinstance(answer, dict) and answer.get("cancel") is True

    def send(self, eval_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """POST what a running task has printed. Raises RejectedError where the queue does not want it, RetryError."""
        url = self._task(eval_id, "logs")
        body = {"messages": list(messages)}
        self._transport.request("POST", url, json=body, deadline=BEAT_SECONDS).check()

    def knows(self, eval_id: str) -> bool:
        """Whether the queue still knows a task. Raises as `Response.check`."""
        response = self._transport.request("GET", self._task(eval_id), deadline=BEAT_SECONDS)
        if response.status == 404:
            return False
        response.check()
        return True

    def _task(self, eval_id: str, call: str = "") -> str:
        # Any text is an id; lone surrogates travel as the bytes that Python would use for them.
        name = urllib.parse.quote(eval_id, safe="", errors="surrogatepass")
        return f"{self._url}/tasks/{name}" + (f"/{call}" if call else "")
