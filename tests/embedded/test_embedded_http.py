"""What HTTP itself asks for: limits, keep-alive, clients that go away. Raw sockets."""

import socket
import struct
import threading
import time
from contextlib import closing

import pytest
from test_embedded_api import await_waiting

from crucible_worker.embedded import server
from crucible_worker.embedded.server import EmbeddedQueue
from crucible_worker.errors import ExitError


@pytest.fixture
def connect(queue):
    opened = []

    def open_one() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", queue.port), timeout=10))
        return opened[-1]

    yield open_one
    for sock in opened:
        sock.close()


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    with sock.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, stream.read(int(headers["content-length"]))


def ask(sock: socket.socket, text: str) -> tuple[int, dict[str, str], bytes]:
    sock.sendall(text.encode("latin-1"))
    return read_answer(sock)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /nothing HTTP/1.1\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /tasks/ HTTP/1.1\r\n\r\n", 404),
        ("GET /tasks/a/b/c HTTP/1.1\r\n\r\n", 404),
        ("GET /tasks/%FF HTTP/1.1\r\n\r\n", 400),
        ("POST /tasks HTTP/1.1\r\n\r\n", 411),
        ("POST /tasks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST /tasks HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 67108865\r\n\r\n", 413),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 3\r\n\r\n{x}", 400),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 1\r\n\r\n\xff", 400),
        ("POST /tasks HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + "[" * 100_000, 400),
        ("POST /tasks/a/complete HTTP/1.1\r\nContent-Length: 16\r\n\r\n" + '{"output":1e999}', 400),
        ("GET /status HTTP/1.1\r\nX: " + "x" * 70_000 + "\r\n\r\n", 431),
        ("GET /status HTTP/1.1\r\n" + "X: y\r\n" * 200 + "\r\n", 431),
        ("GET /" + "x" * 70_000 + " HTTP/1.1\r\n\r\n", 414),
        ("BREW /pot HTTP/1.1\r\n\r\n", 501),
        ("GET /status HTTP/9.1\r\n\r\n", 505),
        ("nonsense\r\n\r\n", 400),
        ("GET http://queue:8081/status?x=y HTTP/1.1\r\n\r\n", 200),
        ("GET /status HTTP/1.0\r\n\r\n", 200),
    ],
    ids=lambda value: str(value)[:40].partition("\r")[0],
)
def test_requests_get_the_status_they_deserve_as_json(connect, request_text, status):
    answer = ask(connect(), request_text)
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/json"
    assert status == 200 or answer[2].startswith(b'{"error": "')


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/tasks", "DELETE, POST"),
        ("POST", "/tasks/next", "GET"),
        ("GET", "/tasks/a/complete", "POST"),
        ("OPTIONS", "/status", "GET"),
    ],
)
def test_the_wrong_method_is_405_with_the_right_ones(connect, method, path, allow):
    status, headers, _ = ask(connect(), f"{method} {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}")
    assert (status, headers["allow"]) == (405, allow)


def test_one_connection_serves_many_requests_even_after_errors(connect):
    sock = connect()
    for _ in range(3):
        assert ask(sock, "GET /status HTTP/1.1\r\n\r\n")[0] == 200
        assert ask(sock, "POST /tasks HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")[0] == 400
        assert ask(sock, "POST /nothing HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")[0] == 404
        assert ask(sock, "GET /status HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")[0] == 200


def test_a_body_that_is_too_large_is_refused_while_it_is_still_being_sent(connect):
    sock = connect()
    sock.sendall(b"POST /tasks HTTP/1.1\r\nContent-Length: 70000000\r\n\r\n")
    for _ in range(100):
        sock.sendall(bytes(100_000))
    assert read_answer(sock)[0] == 413


@pytest.mark.parametrize(("length", "first"), [(2, b"HTTP/1.1 100 Continue"), (1 << 40, b"HTTP/1.1 413 ")])
def test_a_client_that_asks_before_sending_is_answered(connect, length, first):
    sock = connect()
    sock.sendall(f"POST /tasks HTTP/1.1\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert sock.recv(100).startswith(first)


def test_a_client_that_leaves_while_waiting_loses_no_task(connect, queue, client):
    sock = connect()
    sock.sendall(b"GET /tasks/next HTTP/1.1\r\nPrefer: wait=60\r\n\r\n")
    await_waiting(queue)
    sock.close()
    client.submit("a")
    assert client.next()["eval_id"] == "a"
    assert client.get("a").json()["attempts"] == 1


def test_a_client_that_resets_while_waiting_loses_no_task(connect, queue, client):
    sock = connect()
    sock.sendall(b"GET /tasks/next HTTP/1.1\r\nPrefer: wait=60\r\n\r\n")
    await_waiting(queue)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    client.submit("a")
    assert client.next()["eval_id"] == "a"


def test_a_task_whose_answer_cannot_be_written_goes_back_at_once(connect, queue, client):
    client.submit("a", "x" * 20_000_000)
    sock = connect()
    sock.sendall(b"GET /tasks/next HTTP/1.1\r\n\r\n")
    assert sock.recv(10) == b"HTTP/1.1 2"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert client.next(Prefer="wait=10")["eval_id"] == "a"
    assert client.get("a").json()["attempts"] == 2


def test_a_request_that_is_cut_off_changes_nothing(connect, client):
    sock = connect()
    sock.sendall(b'POST /tasks HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"code": "x"}')
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    assert client.counts()["queued"] == 0


def test_a_silent_client_is_hung_up_on(connect, monkeypatch):
    monkeypatch.setattr(server._Handler, "timeout", 0.2)
    sock = connect()
    sock.sendall(b"GET /sta")
    assert sock.recv(1) == b""


def test_too_many_connections_are_turned_away(connect, client, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    first = connect()
    ask(first, "GET /status HTTP/1.1\r\n\r\n")
    ask(connect(), "GET /status HTTP/1.1\r\n\r\n")
    assert connect().recv(12) == b"HTTP/1.1 503"
    assert ask(first, "GET /status HTTP/1.1\r\n\r\n")[0] == 200


def test_stopping_ends_idle_and_stuck_connections_soon():
    queue = EmbeddedQueue()
    queue.start()
    with (
        closing(socket.create_connection(("127.0.0.1", queue.port))) as idle,
        closing(socket.create_connection(("127.0.0.1", queue.port))) as stuck,
    ):
        ask(idle, "GET /status HTTP/1.1\r\n\r\n")
        stuck.sendall(b"POST /tasks HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
        before = time.monotonic()
        queue.stop()
        assert time.monotonic() - before < 3
    assert not [thread for thread in threading.enumerate() if "process_request" in thread.name]


def test_an_unforeseen_failure_is_one_sentence_and_one_log_line(monkeypatch, capfd):
    lines = []
    with EmbeddedQueue(log=lambda event, **fields: lines.append((event, fields))) as queue:
        monkeypatch.setattr(queue._store, "counts", lambda: 1 / 0)
        with closing(socket.create_connection(("127.0.0.1", queue.port))) as sock:
            status, _, body = ask(sock, "GET /status HTTP/1.1\r\n\r\n")
    assert (status, body) == (500, b'{"error": "The queue failed to answer; its log says why."}')
    assert lines == [("request_failed", {"method": "GET", "error": "ZeroDivisionError: division by zero"})]
    assert capfd.readouterr() == ("", "")


def test_an_address_that_is_taken_or_makes_no_sense_is_one_clear_line(queue):
    for address in (f"127.0.0.1:{queue.port}", "127.0.0.1:x", "192.0.2.1:80", "127.0.0.1:99999"):
        with pytest.raises(ExitError, match="cannot listen on") as raised:
            EmbeddedQueue(address=address)
        assert raised.value.code == 64


def test_ipv6_is_an_address_too():
    try:
        queue = EmbeddedQueue(address="[::1]:0")
    except ExitError:
        pytest.skip("no IPv6 on this host")
    with queue:
        assert queue.url == f"http://[::1]:{queue.port}"
