import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from crucible_worker.errors import ExitError
from crucible_worker.observe import server
from crucible_worker.observe.server import HealthReport, HealthServer

WELL = HealthReport(ok=True, ready=True, body={"worker_id": "w1", "engines": ["docker"], "queue_url": "http://q"})
ILL = HealthReport(ok=False, ready=False, reasons=["polling has stalled"], body={"worker_id": "w1"})


@contextmanager
def serving(report=WELL, *, address="127.0.0.1:0", status=dict, on_error=lambda *_: None):
    def health():
        if isinstance(report, Exception):
            raise report
        return report

    metrics = lambda: ("text/plain; version=0.0.4", b"up 1\n")  # noqa: E731
    with HealthServer(address, health=health, status=status, metrics=metrics, on_error=on_error) as running:
        yield running


def ask(port, path="/health", method="GET", host="127.0.0.1", **kwargs):
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, path, **kwargs)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def raw(port, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
        return answer


def test_health_says_what_is_true():
    with serving(WELL) as running:
        status, _, body = ask(running.port)
    assert status == 200
    assert json.loads(body) == {"status": "healthy", "worker_id": "w1", "engines": ["docker"], "queue_url": "http://q"}
    with serving(ILL) as running:
        status, _, body = ask(running.port)
    assert status == 503
    assert json.loads(body) == {"status": "unhealthy", "worker_id": "w1", "reasons": ["polling has stalled"]}


def test_ready_gives_its_reasons():
    with serving(HealthReport(ok=True, ready=False, reasons=["draining"])) as running:
        status, _, body = ask(running.port, "/ready")
        assert ask(running.port)[0] == 200
    assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
    with serving() as running:
        assert ask(running.port, "/ready")[0] == 200


def test_live_needs_nobodys_opinion():
    with serving(RuntimeError("no idea")) as running:
        assert ask(running.port, "/live")[0] == 200


def test_metrics_status_and_index():
    with serving(status=lambda: {"slots": [1], "when": object}) as running:
        _, headers, body = ask(running.port, "/metrics?x=1")
        assert (headers["Content-Type"], body) == ("text/plain; version=0.0.4", b"up 1\n")
        assert json.loads(ask(running.port, "/status")[2])["slots"] == [1]
        assert "/health" in json.loads(ask(running.port, "/")[2])["paths"]


@pytest.mark.parametrize("path", ["/nope", "/health/", "//health", "/../etc/passwd", "*", "/%00"])
def test_other_paths_do_not_exist_and_are_not_repeated(path):
    with serving() as running:
        answer = raw(running.port, f"GET {path} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ") or path == "//health"
    assert b"passwd" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "BREW"])
def test_only_get_and_head(method):
    with serving() as running:
        status, headers, _ = ask(running.port, method=method, body=b"x" * 1000)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_a_body():
    with serving() as running:
        status, headers, body = ask(running.port, method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) == len(ask(running.port)[2])


def test_answers_are_not_cached_not_sniffed_and_do_not_name_their_server():
    with serving() as running:
        for path in ("/health", "/nope"):
            headers = ask(running.port, path)[1]
            assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
            assert "Server" not in headers
            assert headers["Connection"] == "close"


def test_what_fails_inside_is_told_to_the_log_and_not_to_the_world(capfd):
    heard = []
    with serving(RuntimeError("s3cret"), on_error=lambda path, error: heard.append((path, str(error)))) as running:
        status, _, body = ask(running.port)
    assert status == 500
    assert b"s3cret" not in body
    assert heard == [("/health", "s3cret")]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"<script> / x\r\n\r\n", b"400"),
        (b"\xff\xfe\x00 \x80\r\n\r\n", b"400"),
    ],
)
def test_requests_are_bounded_and_nonsense_is_refused_without_an_echo(request_bytes, status, capfd):
    with serving() as running:
        answer = raw(running.port, request_bytes)
        assert ask(running.port)[0] == 200
    assert status in answer.partition(b"\r\n\r\n")[0] or b'"error"' in answer
    assert b"script" not in answer
    assert capfd.readouterr().err == ""


def test_a_hundred_idle_connections_keep_nobody_out():
    with serving() as running, ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            sock.sendall(b"GET /health HTTP/1.1\r\nX-Slow:")
        began = time.monotonic()
        assert ask(running.port)[0] == 200
        assert time.monotonic() - began < 1.0
        alive = [t for t in threading.enumerate() if "process_request" in t.name]
        assert len(alive) <= server.MAX_CONNECTIONS + 5


def test_an_idle_connection_is_closed_in_time(monkeypatch):
    monkeypatch.setattr(server._Handler, "timeout", 0.05)
    with serving() as running, socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
        assert sock.recv(1) == b""


def test_probes_are_answered_while_another_request_hangs():
    release, entered = threading.Event(), threading.Event()

    def status():
        entered.set()
        release.wait(10)
        return {}

    with serving(status=status) as running:
        slow = threading.Thread(target=ask, args=(running.port, "/status"))
        slow.start()
        assert entered.wait(5)
        assert ask(running.port)[0] == 200
        release.set()
        slow.join()


def test_probes_are_answered_within_100_ms_while_threads_compute():
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            sum(range(10_000))

    workers = [threading.Thread(target=busy) for _ in range(2)]
    with serving() as running:
        for worker in workers:
            worker.start()
        try:
            times = []
            for _ in range(10):
                began = time.monotonic()
                ask(running.port)
                times.append(time.monotonic() - began)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    assert sorted(times)[5] < 0.1


def test_a_taken_address_is_one_line_that_names_the_setting():
    with serving() as running, pytest.raises(ExitError, match="CRUCIBLE_HEALTH_ADDRESS") as caught:
        HealthServer(f"127.0.0.1:{running.port}", health=lambda: WELL, status=dict, metrics=lambda: ("", b"")).start()
    assert caught.value.code == 64
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["203.0.113.1:0", "no.such.host.invalid:0"])
def test_an_address_of_somebody_else_is_refused(address):
    with pytest.raises(ExitError, match="cannot listen"):
        HealthServer(address, health=lambda: WELL, status=dict, metrics=lambda: ("", b"")).start()


def test_ipv6_and_on_its_wildcard_ipv4_too():
    with serving(address="[::1]:0") as running:
        assert ask(running.port, host="::1")[0] == 200
    with serving(address="[::]:0") as running:
        assert ask(running.port, host="::1")[0] == 200
        assert ask(running.port)[0] == 200


def test_stop_frees_the_port_and_may_be_called_twice():
    with serving() as running:
        port = running.port
        running.stop()
    with serving(address=f"127.0.0.1:{port}") as again:
        assert ask(again.port)[0] == 200
    with pytest.raises(RuntimeError):
        _ = again.port
