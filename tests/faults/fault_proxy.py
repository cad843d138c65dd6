"""Proxies that fail on purpose: between a worker and its queue, and between a worker and its Docker Engine.

A fault is armed for the nth call of a kind, before the peer gets the call or after the peer has acted on it.
"""

import http.client
import io
import json
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

BEFORE, AFTER = "before", "after"
DELAY_SECONDS = 1.0
_CHUNK = 1 << 16


@dataclass
class Fault:
    """What happens at the `nth` call of a kind: drop, 503, cut, delay, twice, or a callable before the connection ends.

    A callable that returns True lets the call go on.
    """

    kind: str
    moment: str
    action: str | Callable[[], object]
    nth: int = 1
    happened: threading.Event = field(default_factory=threading.Event)


@dataclass
class Request:
    raw: bytes
    method: str
    path: str
    body: bytes


class _DoneError(Exception):
    """The connection ends here."""


class Proxy:
    """One listening socket, one thread for each connection, one upstream connection for each call."""

    injected: ClassVar[Counter] = Counter()  # of all proxies, for the report

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        self._listener = listener
        self._connect = connect
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._closed = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, kind: str, moment: str, action: str | Callable[[], object], nth: int = 1) -> Fault:
        fault = Fault(kind, moment, action, nth)
        with self._lock:
            self._faults.append(fault)
        return fault

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for sock in left:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    # What a call is; subclasses know.

    def kind(self, request: Request) -> str:
        raise NotImplementedError

    def counts(self, request: Request, kind: str, moment: str, answer: bytes) -> bool:
        """Whether a call is one of those that faults are armed for."""
        return True

    def answered(self, request: Request, kind: str, answer: bytes) -> None:
        """A call has been answered, and its caller does not know yet."""

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        stream = client.makefile("rb")
        try:
            with client, stream, suppress(OSError, _DoneError, http.client.HTTPException, ValueError):
                while (request := read_request(stream)) is not None:
                    self._pass_on(client, request)
        finally:
            with self._lock:
                self._open.discard(client)

    def _due(self, request: Request, kind: str, moment: str, answer: bytes = b"") -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if (fault.kind, fault.moment) == (kind, moment) and self.counts(request, kind, moment, answer):
                    fault.nth -= 1
                    if fault.nth == 0:
                        self._faults.remove(fault)
                        action = fault.action if isinstance(fault.action, str) else fault.action.__name__
                        Proxy.injected[f"{action} {moment} {kind}"] += 1
                        return fault
        return None

    def _pass_on(self, client: socket.socket, request: Request) -> None:
        kind = self.kind(request)
        fault = self._due(request, kind, BEFORE)
        if fault is not None:
            self._fail(fault, client, b"")
        with self._connect() as upstream:
            upstream.sendall(request.raw)
            if kind == "attach":
                self._splice(client, upstream, request)
                raise _DoneError
            answer = read_answer(upstream, request.method)
        self.answered(request, kind, answer)
        fault = self._due(request, kind, AFTER, answer)
        if fault is not None:
            if fault.action == "twice":
                with self._connect() as upstream:
                    upstream.sendall(request.raw)
                    answer = read_answer(upstream, request.method)
            self._fail(fault, client, answer)
        client.sendall(answer)

    def _fail(self, fault: Fault, client: socket.socket, answer: bytes) -> None:
        """Do what a fault says. Raises _DoneError where the connection ends with it."""
        try:
            if callable(fault.action):
                if fault.action() is True:
                    return
            elif fault.action == "delay":
                time.sleep(DELAY_SECONDS)
                return
            elif fault.action == "twice":
                return
            elif fault.action == "503":
                client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif fault.action == "cut":
                client.sendall(answer[: len(answer) - 3])
        finally:
            fault.happened.set()
        raise _DoneError

    def _splice(self, client: socket.socket, upstream: socket.socket, request: Request) -> None:
        """Hand the bytes of a hijacked connection on, both ways, until both have ended."""
        head = b""
        while b"\r\n\r\n" not in head:
            part = upstream.recv(1)
            if not part:
                raise _DoneError
            head += part
        client.sendall(head)
        if (fault := self._due(request, "attach", AFTER)) is not None:
            self._fail(fault, client, b"")
        other = {client: upstream, upstream: client}
        alive = {client, upstream}
        while alive:
            for sock in select.select(list(alive), [], [])[0]:
                data = sock.recv(_CHUNK)
                if not data:
                    alive.discard(sock)
                    with suppress(OSError):
                        other[sock].shutdown(socket.SHUT_WR)
                    if sock is client:
                        return
                    continue
                for moment in (BEFORE, AFTER):
                    if sock is upstream and (fault := self._due(request, "output", moment, data)) is not None:
                        self._fail(fault, client, b"")
                    if moment is BEFORE:
                        other[sock].sendall(data)


def read_request(stream: io.BufferedReader) -> Request | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    body = stream.read(int(length[1])) if length else b""
    return Request(head + body, method, path, body)


def read_answer(upstream: socket.socket, method: str) -> bytes:
    """A whole answer, with its length said instead of chunks."""
    response = http.client.HTTPResponse(upstream, method=method)
    response.begin()
    body = response.read()
    skipped = {"transfer-encoding", "content-length", "connection"}
    lines = [f"{name}: {value}" for name, value in response.getheaders() if name.lower() not in skipped]
    length = [] if response.status in {204, 304} else [f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"HTTP/1.1 {response.status} {response.reason}", *lines, *length])
    return head.encode("latin-1") + b"\r\n\r\n" + body


class QueueProxy(Proxy):
    """In front of a Queue Service. Kinds: poll, heartbeat, release, settle."""

    def __init__(self, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        super().__init__(listener, lambda: socket.create_connection(("127.0.0.1", port)))

    def kind(self, request: Request) -> str:
        if request.path.startswith("/tasks/next"):
            return "poll"
        last = request.path.rpartition("/")[2]
        return "settle" if last in {"complete", "fail"} else last

    def counts(self, request: Request, kind: str, moment: str, answer: bytes) -> bool:
        return kind != "poll" or moment == BEFORE or b'"eval_id"' in answer


class DaemonProxy(Proxy):
    """In front of a Docker Engine. Kinds are the calls for sandboxes of tasks, not canaries; output is their words."""

    _CALLS: ClassVar = {
        "json": "inspect",
        "attach": "attach",
        "start": "start",
        "wait": "wait",
        "kill": "kill",
        "stats": "stats",
    }

    def __init__(self, path: str, upstream: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        self.host = f"unix://{path}"
        self._ours: set[str] = set()

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(upstream)
            except OSError:
                sock.close()
                raise
            return sock

        super().__init__(listener, connect)

    def kind(self, request: Request) -> str:
        if "/containers/create" in request.path:
            return "create"
        found = re.search(r"/containers/([0-9a-f]{64})(?:/(\w+))?", request.path)
        if not found:
            return ""
        return "remove" if request.method == "DELETE" else self._CALLS.get(found[2], "")

    def counts(self, request: Request, kind: str, moment: str, answer: bytes) -> bool:
        if kind == "create":
            task = json.loads(request.body)["Labels"]["crucible.task"]
            return not task.startswith("canary-")
        if kind == "output" and b"hello" not in answer:
            return False
        found = re.search(r"/containers/([0-9a-f]{64})", request.path)
        return bool(found) and found[1] in self._ours

    def answered(self, request: Request, kind: str, answer: bytes) -> None:
        found = re.search(rb'"Id":"([0-9a-f]{64})"', answer)
        if kind == "create" and found and self.counts(request, kind, AFTER, answer):
            self._ours.add(found[1].decode())
