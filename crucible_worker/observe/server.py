"""Port 8082: health, metrics and status over HTTP, from threads of its own. Read-only, and hard to starve."""

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, Self

from crucible_worker.errors import ExitCode, ExitError
from crucible_worker.observe.access import CHALLENGE, OPEN_PATHS, Access, ServerTls

SOCKET_SECONDS = 5.0
MAX_REQUEST_BYTES = 16_384  # request line and headers together
MAX_CONNECTIONS = 32
_JSON = "application/json"
PATHS = ("/health", "/live", "/ready", "/metrics", "/status")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What is true of the worker now. `reasons` say in words why it is not ok, or not ready."""

    ok: bool
    ready: bool
    reasons: list[str] = field(default_factory=list)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(status: int, document: Mapping[str, Any], **headers: str) -> _Answer:
    return _Answer(status, json.dumps(document, default=str).encode() + b"\n", headers=headers)


class HealthServer:
    """Serves GET and HEAD on one address. `health`, `status` and `metrics` are asked at each request, in its thread."""

    def __init__(
        self,
        address: str,
        *,
        health: Callable[[], HealthReport],
        status: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], tuple[str, bytes]],
        page: Callable[[], tuple[Mapping[str, str], bytes]] | None = None,
        access: Access | None = None,
        tls: ServerTls | None = None,
        on_error: Callable[[str, BaseException], None] = lambda path, error: None,  # noqa: ARG005
    ) -> None:
        """`address` is HOST:PORT or [HOST]:PORT; port 0 takes a free one. `on_error` hears what a callable raised.

        `page` gives headers and HTML for `/`; without it, that lists the paths.
        """
        self._address = address
        self._health = health
        self._status = status
        self._metrics = metrics
        self._page = page
        self._access = access or Access()
        self._tls = tls
        self._on_error = on_error
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen and serve in the background. Raises ExitError (64) where the address cannot be had."""
        host, _, port = self._address.rpartition(":")
        try:
            self._server = _Server(host.strip("[]"), int(port), self._answer, self._tls)
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or error
            raise ExitError(
                ExitCode.USAGE,
                f"cannot listen on {self._address} ({words}); set CRUCIBLE_HEALTH_ADDRESS to a free HOST:PORT.",
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and close every connection. May be called twice, or without a start."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.close()
            self._server = self._thread = None

    @property
    def port(self) -> int:
        """The port that is listened on. Only after `start`."""
        if self._server is None:
            raise RuntimeError("not started")
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answer(self, path: str, authorization: str) -> _Answer:
        try:
            return self._route(path, admitted=self._access.admits(authorization))
        except Exception as error:  # noqa: BLE001 - whatever fails inside, the prober gets an answer
            self._on_error(path, error)
            return _json(500, {"status": "unhealthy", "error": "internal error; see the log"})

    def _route(self, path: str, *, admitted: bool) -> _Answer:
        if not admitted and path not in OPEN_PATHS:
            return _json(401, {"error": "the token is missing or wrong"}, **{"WWW-Authenticate": CHALLENGE})
        routes: Mapping[str, Callable[[], _Answer]] = {
            "/": self._index,
            "/health": lambda: _health(self._health(), in_full=admitted),
            "/live": lambda: _json(200, {"status": "alive"}),
            "/ready": lambda: _ready(self._health(), in_full=admitted),
            "/metrics": lambda: _text(*self._metrics()),
            "/status": lambda: _json(200, self._status()),
        }
        if path not in routes:
            return _json(404, {"error": "no such path", "paths": PATHS})
        return routes[path]()

    def _index(self) -> _Answer:
        if self._page is None:
            return _json(200, {"paths": PATHS})
        headers, body = self._page()
        return _Answer(200, body, "text/html; charset=utf-8", headers)


def _text(content_type: str, body: bytes) -> _Answer:
    return _Answer(200, body, content_type)


def _ready(report: HealthReport, *, in_full: bool) -> _Answer:
    words = "ready" if report.ready else "not ready"
    reasons = {"reasons": report.reasons} if in_full else {}
    return _json(200 if report.ready else 503, {"status": words, **reasons})


def _health(report: HealthReport, *, in_full: bool) -> _Answer:
    document = {"status": "healthy" if report.ok else "unhealthy", **(report.body if in_full else {})}
    if in_full and not report.ok:
        document["reasons"] = report.reasons
    return _json(200 if report.ok else 503, document)


class _TooLargeError(Exception):
    pass


class _Bounded:
    """Reads lines until a request has had its share of bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MAX_REQUEST_BYTES

    def readline(self, _size: int = -1) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _TooLargeError
        return line

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    """One request, then the connection is closed."""

    server: "_Server"
    timeout = SOCKET_SECONDS
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Bounded(self.rfile)
        self.command, self.request_version, self.requestline = "", self.protocol_version, ""

    def handle(self) -> None:
        # A peer that goes away while it is read from or written to is nobody's error.
        with contextlib.suppress(OSError):
            try:
                self.handle_one_request()
            except _TooLargeError:
                self.send_error(431)

    def parse_request(self) -> bool:
        understood = super().parse_request()
        self.close_connection = True
        if understood and self.command not in {"GET", "HEAD"}:
            self._send(_json(405, {"error": "only GET and HEAD"}, Allow="GET, HEAD"))
            return False
        return understood

    def do_GET(self) -> None:
        self._send(self.server.answer(self.path.partition("?")[0], self.headers.get("Authorization", "")))

    do_HEAD = do_GET  # noqa: N815 - as above

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong with a request without repeating any of it."""
        del message, explain
        self._send(_json(int(code), {"error": self.responses.get(code, ("bad request", ""))[0]}))

    def _send(self, answer: _Answer) -> None:
        self.send_response_only(answer.status)
        headers = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
            "Connection": "close",
        }
        for name, value in (headers | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - http.server's own signature
        """Probes come every few seconds; nobody wants to read of them."""


class _Server(ThreadingHTTPServer):
    """At most MAX_CONNECTIONS: a new one closes the oldest, so that idle ones cannot keep a probe out."""

    daemon_threads = True
    allow_reuse_port = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Callable[[str, str], _Answer], tls: ServerTls | None) -> None:
        self.answer = answer
        self._tls = tls
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's: that one asks the DNS for a name that nobody reads.
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if self._tls is not None:
            # The handshake comes with the first read, in the thread of this connection.
            request = self._tls.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's own signature
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                _hang_up(oldest)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A connection's misfortune is not worth a traceback on stderr."""

    def close(self) -> None:
        self.server_close()
        with self._lock:
            for request in self._open:
                _hang_up(request)


def _hang_up(request: socket.socket) -> None:
    """End a connection under the thread that reads from it; that thread closes it."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
