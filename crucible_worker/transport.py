"""The one door for outgoing HTTP: total deadlines, bounded bodies, no redirects, faults as our own errors."""

import email.utils
import http.client
import json as jsonlib
import math
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from crucible_worker import __version__
from crucible_worker.errors import ExitCode, ExitError, KeyRefusedError, RejectedError, RetryError

CONNECT_SECONDS = 5.0
MAX_BODY_BYTES = 128 << 20  # 10 MB of code is 60 MB of JSON when every byte is escaped
MAX_RETRY_AFTER_SECONDS = 300.0
_CHUNK = 1 << 16
_RETRIED = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - a JSON document
        """The body as JSON. Raises RetryError where it is none: some proxy answered, not the peer."""
        try:
            return jsonlib.loads(self.body)
        except (ValueError, RecursionError):
            raise RetryError(f"answered {self.status} with something that is not JSON: {self._excerpt()}") from None

    def check(self) -> "Response":
        """The answer itself if it is 2xx; otherwise raise what the caller has to do next.

        RetryError for 1xx, 3xx, 408, 425, 429 and 5xx, KeyRefusedError for 401 and 403, RejectedError for the rest.
        """
        if 200 <= self.status < 300:
            return self
        if 300 <= self.status < 400:
            target = self.headers.get("location", "nowhere")
            raise RetryError(f"redirects ({self.status}) to {target[:200]}; configure the final URL instead")
        message = f"answered {self.status}: {self._excerpt()}"
        if self.status in {401, 403}:
            raise KeyRefusedError(message)
        if self.status in _RETRIED or self.status >= 500 or self.status < 200:
            raise RetryError(message, retry_after(self.headers.get("retry-after"), time.time()))
        raise RejectedError(message)

    def _excerpt(self) -> str:
        return self.body[:200].decode("utf-8", "replace").strip() or "(empty)"


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3): a number or a date. Capped; None if unusable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(moment - now, 0.0), MAX_RETRY_AFTER_SECONDS)


class _Deadline:
    """Ends a connection when the time is up, however slowly its bytes trickle in."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.passed = False
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, sock: socket.socket) -> None:
        """Watch a connection from its first byte. By a copy: TLS takes the socket itself away."""
        with self._lock:
            self._socks.append(sock.dup())
        if self.passed:  # while the name was looked up, which no socket's timeout bounds
            self._end()

    def _end(self) -> None:
        self.passed = True
        with self._lock:
            for sock in self._socks:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            while self._socks:
                self._socks.pop().close()


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that obey a deadline."""

    def __init__(self, context: Callable[[], ssl.SSLContext], deadline: _Deadline) -> None:
        urllib.request.AbstractHTTPHandler.__init__(self)
        self._tls = context
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection(http.client.HTTPSConnection), req, context=self._tls())

    def _connection(self, base: type[http.client.HTTPConnection]) -> Any:  # noqa: ANN401 - a class made on the spot
        deadline = self._deadline

        class Connection(base):  # type: ignore[valid-type,misc]
            def connect(self) -> None:
                self.timeout = min(CONNECT_SECONDS, deadline.seconds)
                self._create_connection = watched
                super().connect()
                self.sock.settimeout(deadline.seconds)

        def watched(*arguments: Any) -> socket.socket:  # noqa: ANN401 - those of socket.create_connection
            sock = socket.create_connection(*arguments)
            deadline.watch(sock)
            return sock

        return Connection


def tls_context(ca_file: str = "", client_cert: str = "", client_key: str = "") -> ssl.SSLContext:
    """A verifying TLS client context. Paths to PEM files; empty means the system's trust and no client certificate.

    Raises ExitError (64) naming the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ExitError(ExitCode.USAGE, f"CRUCIBLE_CA_FILE {ca_file} cannot be used: {error}.") from None
    if client_cert:
        try:
            context.load_cert_chain(client_cert, client_key or None)
        except (OSError, ssl.SSLError) as error:
            raise ExitError(
                ExitCode.USAGE, f"CRUCIBLE_CLIENT_CERT {client_cert} cannot be used with its key: {error}."
            ) from None
    return context


def proxy_of(url: str) -> str:
    """The proxy that the environment names for a URL, or an empty text (urllib.request.getproxies)."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return urllib.request.getproxies().get(parts.scheme, "")


class HttpTransport:
    """Sends requests with urllib. Proxies are taken from the environment; redirects are never followed."""

    def __init__(
        self,
        api_key: Callable[[], str] = lambda: "",
        context: Callable[[], ssl.SSLContext] = tls_context,
    ) -> None:
        """`api_key` is asked at each call, so that it may change.

        `context` is made when TLS is first spoken, and by `reload`: the system's certificates take 2 MB of memory.
        """
        self._api_key = api_key
        self._make_context = context
        self._context: ssl.SSLContext | None = None

    def reload(self) -> None:
        """Read certificates, again or for the first time. Raises what `context` raises."""
        self._context = self._make_context()

    def request(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        deadline: float = 30.0,
    ) -> Response:
        """Send one request and read its whole answer within `deadline` seconds. `json` in bytes is sent as it is.

        Raises RetryError for whatever keeps the peer from answering completely: names, connections, TLS, time.
        """
        body = json if json is None or isinstance(json, bytes) else jsonlib.dumps(json).encode()
        sent = {"User-Agent": f"crucible-worker/{__version__}", "Accept": "application/json"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        if key := self._api_key():
            sent["X-API-Key"] = key
        request = urllib.request.Request(url, body, sent | dict(headers or {}), method=method)  # noqa: S310 - checked by settings
        with (
            _Deadline(deadline) as limit,
            _faults(limit),
            self._opener(limit).open(request, timeout=deadline) as answer,
        ):
            response = Response(answer.status, _lower(answer.headers), _read(answer))
            if limit.passed:  # the end of the body may be ours
                raise TimeoutError
            return response

    def _opener(self, deadline: _Deadline) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        opener.add_handler(urllib.request.ProxyHandler())
        opener.add_handler(_Handler(self._tls, deadline))
        return opener

    def _tls(self) -> ssl.SSLContext:
        context = self._context
        if context is None:
            context = self._context = self._make_context()
        return context


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _read(answer: http.client.HTTPResponse) -> bytes:
    promised = answer.length
    body = bytearray()
    while chunk := answer.read(_CHUNK):
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise RetryError(f"answered with more than {MAX_BODY_BYTES >> 20} MiB")
    if promised is not None and len(body) < promised:
        raise http.client.IncompleteRead(bytes(body), promised - len(body))
    return bytes(body)


@contextmanager
def _faults(deadline: _Deadline) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        if deadline.passed or isinstance(error, TimeoutError):
            raise RetryError(f"no complete answer within {math.ceil(deadline.seconds)} s") from error
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, http.client.IncompleteRead):
            raise RetryError(f"the answer was cut off after {len(cause.partial)} bytes") from error
        if isinstance(cause, TimeoutError):
            raise RetryError(f"no connection within {math.ceil(CONNECT_SECONDS)} s") from error
        raise RetryError(f"cannot be reached: {cause or type(cause).__name__}") from error
