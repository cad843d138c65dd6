"""The embedded queue over HTTP/1.1: sockets, sizes, keys and deadlines. What the calls do is in `api`."""

import contextlib
import hmac
import http.server
import re
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qs

from crucible_worker.embedded import store, wire
from crucible_worker.embedded.api import Api, Route
from crucible_worker.embedded.wire import Answer, HttpError
from crucible_worker.errors import ExitCode, ExitError

MAX_BODY_BYTES = 64 << 20
MAX_CONNECTIONS = 500
# Longest silence of a peer, within a request and between two on one connection.
SOCKET_SECONDS = 60.0
# How long a refused request's body is read and dropped, so that its sender gets to see the refusal.
_LINGER_SECONDS = 2.0
_STOP_SECONDS = 5.0

Log = Callable[..., object]
"""Called as `log(event, **fields)`, for what an operator has to know; structlog's methods fit."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, in its own thread."""

    server: "_Server"
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_SECONDS
    # Headers and body leave in one write, but a long one must not wait for an acknowledgement either.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        if self.request_version != "HTTP/1.1":
            self.close_connection = True
        try:
            answer = self._answer()
        except HttpError as error:
            self._send(Answer.of(error.status, {"error": str(error)}, error.headers))
        except OSError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a sentence and the operator a line
            self.server.log("request_failed", method=self.command, error=f"{type(error).__name__}: {error}")
            self.close_connection = True
            self._send(Answer.of(500, {"error": "The queue failed to answer; its log says why."}))
        else:
            self._send(answer)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_QUERY = _serve  # noqa: N815

    def _answer(self) -> Answer:
        # Until the body is read, what is left of it would be taken for the next request.
        close_after, self.close_connection = self.close_connection, True
        path, _, query = re.sub("^https?://[^/?]*", "", self.path).partition("?")
        try:
            route = self.server.api.route(self.command, path)
            self._check_key(route)
        except HttpError:
            # A key that is missing is said before anything about paths.
            self._check_key(None)
            self._read_body(limit=1 << 16)
            self.close_connection = close_after
            raise
        body = self._read_body(limit=MAX_BODY_BYTES)
        self.close_connection = close_after
        wait = wire.preferred_wait(",".join(self.headers.get_all("Prefer", [])))
        request = wire.Request(route.eval_id, parse_qs(query), body, wait, self._alive)
        return self.server.api.answer(route, request)

    def _check_key(self, route: Route | None) -> None:
        expected = self.server.api_key.encode()
        given = self.headers.get("X-API-Key", "").encode("utf-8", "replace")
        if (route and route.public) or not expected or hmac.compare_digest(expected, given):
            return
        raise HttpError(401, "The X-API-Key header is missing or wrong.", {"WWW-Authenticate": "X-API-Key"})

    def _read_body(self, limit: int) -> bytes:
        """The body, in full. Raises HttpError where it has no usable length, and ConnectionError where it is cut."""
        length = self.headers.get("Content-Length")
        if self.headers.get("Transfer-Encoding") or (length is None and self.command in {"POST", "PUT", "PATCH"}):
            raise HttpError(411, "The request needs a Content-Length.")
        text = (length or "0").strip()
        if not (text.isascii() and text.isdecimal()) or len(self.headers.get_all("Content-Length", [])) > 1:
            raise HttpError(400, "The Content-Length must be one whole number.")
        if len(text) > 18 or int(text) > limit:
            raise HttpError(413, f"The body must not be longer than {limit} bytes.")
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            raise ConnectionError
        return body

    def handle_expect_100(self) -> bool:
        """Let the client send its body only if it may be read at all."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) <= MAX_BODY_BYTES:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _alive(self) -> bool:
        """Whether the client has not closed its side."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            # A socket with a timeout waits in recv() whatever its flags, so only one that has news is read.
            return not poll.poll(0) or self.connection.recv(1, socket.MSG_PEEK) != b""
        except OSError:
            return False

    def _send(self, answer: Answer) -> None:
        try:
            self.connection.sendall(self._bytes(answer))
        except OSError:
            self.close_connection = True
            if answer.undo:
                answer.undo()

    def _bytes(self, answer: Answer) -> bytes:
        body = answer.body.encode()
        headers = {
            "Date": self.date_time_string(),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            **answer.headers,
        }
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head if self.command == "HEAD" else head + body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not HTTP, or too much of it, as JSON."""
        del explain
        self.close_connection = True
        self._send(Answer.of(code, {"error": f"{message or HTTPStatus(code).phrase}."}))

    def finish(self) -> None:
        """Close in such a way that the last answer arrives, though more was being sent to us."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            deadline = time.monotonic() + _LINGER_SECONDS
            while time.monotonic() < deadline and not self.server.stopping and self.connection.recv(1 << 16):
                pass
        super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Stay silent: a worker polls for ever."""


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A bounded number of connections, each in a thread that `stop` ends."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: Api, api_key: str, log: Log) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.api = api
        self.api_key = api_key
        self.log = log
        self.stopping = False
        self._open: set[socket.socket] = set()
        self._none_open = threading.Condition()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the reverse look-up of http.server, which may take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's types
        """Serve the connection in a thread, or turn it away where there are too many."""
        with self._none_open:
            accepted = len(self._open) < MAX_CONNECTIONS and not self.stopping
            if accepted:
                self._open.add(request)
        if not accepted:
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:  # noqa: ANN401 - socketserver's types
        """Close a connection that is done."""
        super().close_request(request)
        with self._none_open:
            self._open.discard(request)
            self._none_open.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's types
        """Note what http.server could not handle; a client that broke off is no error."""
        del request, client_address
        error = sys.exception()
        if not isinstance(error, OSError):
            self.log("connection_failed", error=f"{type(error).__name__}: {error}")

    def end_connections(self) -> None:
        """Let calls in progress be answered, then end every connection."""
        self.stopping = True
        self._shut(socket.SHUT_RD)
        with self._none_open:
            self._none_open.wait_for(lambda: not self._open, _STOP_SECONDS)
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with self._none_open:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(how)


class EmbeddedQueue:
    """The queue that ships with the worker: a store behind HTTP. Also a context manager that starts and stops it.

    `database` is a file or `:memory:`, `address` HOST:PORT where port 0 takes a free one. Without `api_key`, whoever
    reaches the address may call. `log(event, **fields)` hears of failures; the rest is as in `Store`.
    """

    def __init__(
        self,
        database: str = ":memory:",
        address: str = "127.0.0.1:0",
        *,
        api_key: str = "",
        lease_seconds: float = store.DEFAULT_LEASE_SECONDS,
        keep: int = store.DEFAULT_KEEP,
        keep_seconds: float = store.DEFAULT_KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
        log: Log = lambda _event, **_fields: None,
    ) -> None:
        """Open the database and take the address. Raises ExitError (64) where one of them cannot be had."""
        self._store = store.Store(
            database, lease_seconds=lease_seconds, keep=keep, keep_seconds=keep_seconds, clock=clock
        )
        self._api = Api(self._store)
        host, _, port = address.rpartition(":")
        self._host = host.strip("[]")
        try:
            self._server = _Server((self._host, int(port)), self._api, api_key, log)
        except (OSError, ValueError, OverflowError) as error:
            self._store.close()
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise ExitError(
                ExitCode.USAGE, f"cannot listen on {address}: {why}; choose another with --address."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="embedded-queue")

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the queue."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Serve, in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what is being asked, end all waiting, and close address and database. Once only."""
        self._api.close()
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.end_connections()
        self._server.server_close()
        self._store.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
