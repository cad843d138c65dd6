"""The one door for outgoing HTTP, against servers that answer well, badly, slowly or not at all."""

import contextlib
import datetime as dt
import email.utils
import socket
import ssl
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import ScriptedServer, cut, document, drip, hang_up, never, status

from crucible_worker.errors import ExitError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.transport import MAX_RETRY_AFTER_SECONDS, HttpTransport, Response, retry_after, tls_context


@pytest.fixture
def server():
    with ScriptedServer() as running:
        yield running


def test_a_request_carries_the_key_and_the_document(server):
    keys = iter(["one", "two", ""])
    transport = HttpTransport(lambda: next(keys))
    for _ in range(3):
        transport.request("POST", f"{server.url}/x?y=1", json={"a": "ü"}, headers={"Prefer": "wait=1"})
    first, second, third = server.calls
    assert (first.method, first.path, first.json) == ("POST", "/x?y=1", {"a": "ü"})
    assert first.headers["content-type"] == "application/json"
    assert first.headers["prefer"] == "wait=1"
    assert (first.headers["x-api-key"], second.headers["x-api-key"]) == ("one", "two"), "asked at each call"
    assert "x-api-key" not in third.headers


def test_an_answer_is_given_whatever_its_status(server):
    server.default = status(404, "nothing", X_Odd="1")
    answer = HttpTransport().request("GET", server.url)
    assert (answer.status, answer.body, answer.headers["x-odd"]) == (404, b"nothing", "1")


@pytest.mark.parametrize(
    ("code", "error"),
    [(200, None), (202, None), (204, None), (401, KeyRefusedError), (403, KeyRefusedError)]
    + [(code, RetryError) for code in (301, 302, 307, 308, 408, 425, 429, 500, 502, 503, 504)]
    + [(code, RejectedError) for code in (400, 405, 413, 418, 422)],
)
def test_a_status_says_what_to_do_next(code, error):
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        Response(code, {}, b"").check()


@given(st.integers(100, 599))
def test_every_status_has_a_next_step(code):
    with contextlib.suppress(RetryError, KeyRefusedError, RejectedError):
        assert Response(code, {}, b"").check().status in range(200, 300)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("99999999999", MAX_RETRY_AFTER_SECONDS),
        ("soon", None), ("-3", None), ("", None), ("1.5", None),
        (email.utils.format_datetime(dt.datetime.fromtimestamp(1060, dt.UTC), usegmt=True), 60.0),
        (email.utils.format_datetime(dt.datetime.fromtimestamp(10, dt.UTC), usegmt=True), 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after(value, now=1000.0) == seconds


@given(st.text())
def test_no_retry_after_breaks_anything(value):
    found = retry_after(value, time.time())
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang_up, "cannot be reached"),
        (cut(b"{", 100), "the answer was cut off after 1 bytes"),
        (never, "no complete answer within 1 s"),
        (drip, "no complete answer within 1 s"),
    ],
)
def test_an_answer_that_is_not_complete_is_tried_again(answer, words, server):
    server.default = answer
    began = time.monotonic()
    with pytest.raises(RetryError, match=words):
        HttpTransport().request("GET", server.url, deadline=1.0)
    assert time.monotonic() - began < 10


def test_nobody_there_is_tried_again():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RetryError, match="cannot be reached"):
        HttpTransport().request("GET", f"http://127.0.0.1:{port}")


def test_a_name_that_does_not_exist_is_tried_again():
    with pytest.raises(RetryError):
        HttpTransport().request("GET", "http://no-such-host.invalid", deadline=5)


def test_a_redirect_is_not_followed(server):
    with ScriptedServer(document("secret")) as elsewhere:
        server.default = status(302, "", Location=elsewhere.url)
        answer = HttpTransport(lambda: "key").request("GET", server.url)
        with pytest.raises(RetryError, match="redirects"):
            answer.check()
        assert elsewhere.calls == []


def test_what_is_no_json_is_tried_again(server):
    server.default = status(200, "<html>log in</html>")
    with pytest.raises(RetryError, match="log in"):
        HttpTransport().request("GET", server.url).json()


def test_no_thread_and_no_socket_outlives_a_call(server):
    transport = HttpTransport()
    before = threading.active_count()
    for _ in range(5):
        transport.request("GET", server.url, deadline=60)
    until = time.monotonic() + 30
    while threading.active_count() > before + 1 and time.monotonic() < until:
        time.sleep(0.01)
    # The server's own thread for the last connection may still be ending.
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize("setting", [{"ca_file": "/nowhere"}, {"client_cert": "/nowhere"}, {"ca_file": __file__}])
def test_certificates_that_cannot_be_used_are_named(setting):
    with pytest.raises(ExitError, match=r"CRUCIBLE_(CA_FILE|CLIENT_CERT) \S+ cannot be used"):
        tls_context(**setting)


def test_certificates_are_read_again_when_told():
    made = []

    def context() -> ssl.SSLContext:
        made.append(1)
        return tls_context()

    transport = HttpTransport(context=context)
    with ScriptedServer() as plain:
        transport.request("GET", plain.url)
        assert not made, "nobody has asked for TLS"
        for _ in range(2):
            with pytest.raises(RetryError):
                transport.request("GET", plain.url.replace("http:", "https:"), deadline=5)
        assert len(made) == 1
    transport.reload()
    assert len(made) == 2


def test_tls_is_verified():
    """A server that speaks something else is not believed."""
    with ScriptedServer() as plain, pytest.raises(RetryError, match="cannot be reached"):
        HttpTransport().request("GET", plain.url.replace("http:", "https:"), deadline=5)
