"""Real HTTP servers on loopback that record every call and answer as told: well, or badly in one of many ways."""

import http.server
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PATIENCE = 60.0  # for anything that must happen; generous, since hosts may be loaded


@dataclass(frozen=True)
class Call:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[["Handler"], None]


def status(code: int, body: bytes | str = b"", **headers: str) -> Answer:
    """An answer with a status, a body and headers (Retry_After becomes Retry-After)."""
    data = body.encode() if isinstance(body, str) else body

    def answer(handler: "Handler") -> None:
        handler.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        if code != 204:
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def document(value: object) -> Answer:
    """200 with a JSON document."""
    return status(200, json.dumps(value))


def cut(body: bytes, promised: int) -> Answer:
    """A body that ends before it is complete."""

    def answer(handler: "Handler") -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang_up(_handler: "Handler") -> None:
    """The connection ends without an answer."""


def never(handler: "Handler") -> None:
    """No answer, until the server is stopped or the client has gone."""
    handler.scripted.released.wait(PATIENCE)


def drip(handler: "Handler") -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.scripted.released.wait(0.05):
        handler.wfile.write(b" ")


def after(gate: threading.Event, then: Answer) -> Answer:
    """An answer that waits for a gate."""

    def answer(handler: "Handler") -> None:
        gate.wait(PATIENCE)
        then(handler)

    return answer


class Handler(http.server.BaseHTTPRequestHandler):
    scripted: "ScriptedServer"

    def handle_one_request(self) -> None:
        # A client that has had enough is part of the script.
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = Call(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.scripted.take(call)(self)

    do_GET = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # every thread is joined: nothing of one test reaches into the next
    request_queue_size = 64


class ScriptedServer:
    """Answers `default` to all, or what was put in front of it. May be stopped, and started again on its port."""

    def __init__(self, default: Answer = status(202)) -> None:  # noqa: B008 - immutable
        self.default = default
        self.calls: list[Call] = []
        self.released = threading.Event()
        self.changed = threading.Condition()
        self._port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self.released.clear()
        handler = type("BoundHandler", (Handler,), {"scripted": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def take(self, call: Call) -> Answer:
        """Record a call and find its answer."""
        with self.changed:
            self.calls.append(call)
            answer = self.answer(call)
            self.changed.notify_all()
        return answer

    def answer(self, call: Call) -> Answer:
        return self.default

    def wait(self, found: Callable[[], Any], what: str = "the call") -> Any:
        """What `found` finds in the calls, once it finds something."""
        with self.changed:
            if not self.changed.wait_for(found, PATIENCE):
                raise TimeoutError(f"{what} did not come; calls: {[(c.method, c.path[:80]) for c in self.calls[-20:]]}")
            return found()
