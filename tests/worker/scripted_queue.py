"""The Queue Service as the platform has it: FIFO, in memory, a pop that forgets, no leases. With faults on demand."""

import json
import urllib.parse
from collections import deque

from scripted_server import Answer, Call, ScriptedServer, document, status


class ScriptedQueue(ScriptedServer):
    """Hands out what was pushed, in order. One-shot answers for polls and settlements go before the normal ones."""

    def __init__(self, key: str = "") -> None:
        super().__init__()
        self.key = key
        self.tasks: deque[object] = deque()
        self.poll_answers: deque[Answer] = deque()
        self.settle_answers: deque[Answer] = deque()
        self.known: set[str] = set()

    def push(self, *tasks: object) -> None:
        """Tasks as JSON documents; bytes are sent as they are; a callable answers for itself."""
        with self.changed:
            self.tasks.extend(tasks)

    def answer(self, call: Call) -> Answer:
        if self.key and call.headers.get("x-api-key") != self.key:
            return status(401, '{"detail":"wrong key"}')
        path = urllib.parse.urlsplit(call.path).path
        if (call.method, path) == ("GET", "/tasks/next"):
            return self._next()
        if call.method == "POST" and path.startswith("/tasks/") and path.endswith(("/complete", "/fail")):
            return self.settle_answers.popleft() if self.settle_answers else document({"status": "ok"})
        return status(404, '{"detail":"Not Found"}')

    def _next(self) -> Answer:
        if self.poll_answers:
            return self.poll_answers.popleft()
        if not self.tasks:
            return document(None)
        task = self.tasks.popleft()
        if callable(task):
            return task
        return status(200, task if isinstance(task, bytes) else json.dumps(task))

    def polls(self) -> list[Call]:
        return [call for call in self.calls if call.path.startswith("/tasks/next")]

    def settlements(self, eval_id: str | None = None) -> list[Call]:
        """The complete and fail calls, of one task or of all."""
        found = [call for call in self.calls if call.method == "POST" and not call.path.endswith("/logs")]
        return [call for call in found if eval_id is None or settled_id(call) == eval_id]

    def settled(self, eval_id: str) -> Call:
        """The first complete or fail call of a task, once it has come."""
        return self.wait(lambda: self.settlements(eval_id), f"the settlement of {eval_id[:80]}")[0]

    def completed(self, eval_id: str) -> dict:
        """The RESULT of a task, once it has come."""
        call = self.settled(eval_id)
        assert call.path.endswith("/complete"), call.body[:2000]
        return call.json["output"]

    def failed(self, eval_id: str) -> str:
        """The error of a task that failed, once it has."""
        call = self.settled(eval_id)
        assert call.path.endswith("/fail"), call.body[:2000]
        return call.json["error"]


def settled_id(call: Call) -> str:
    return urllib.parse.unquote(call.path.split("/")[2], errors="surrogatepass")
