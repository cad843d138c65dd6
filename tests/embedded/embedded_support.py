"""A clock moved by hand, and a client, for the tests of the embedded queue."""

import json

from crucible_worker.embedded.wire import quote_id
from crucible_worker.transport import HttpTransport, Response


class Clock:
    """Seconds since the epoch, advanced by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """A worker and a submitter in one, over real HTTP."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url
        self.http = HttpTransport(lambda: key)

    def call(self, method: str, path: str, document: object = None, **headers: str) -> Response:
        return self.http.request(method, self.url + path, json=document, headers=headers)

    def submit(self, eval_id: str | None = None, code: str = "pass", **fields: object) -> Response:
        return self.call("POST", "/tasks", {"eval_id": eval_id, "code": code, **fields})

    def next(self, query: str = "", **headers: str):
        answer = self.call("GET", f"/tasks/next{query}", **headers)
        assert answer.status == 200, answer
        return answer.json()

    def of(self, eval_id: str, call: str, document: object) -> Response:
        return self.call("POST", f"/tasks/{quote_id(eval_id)}/{call}", document)

    def get(self, eval_id: str, what: str = "", **headers: str) -> Response:
        return self.call("GET", f"/tasks/{quote_id(eval_id)}{what}", **headers)

    def counts(self) -> dict[str, int]:
        return json.loads(self.call("GET", "/status").body)
