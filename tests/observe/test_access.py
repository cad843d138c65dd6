"""A token and TLS for port 8082, and `healthcheck` that follows."""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess

import pytest

from crucible_worker.cli.main import main
from crucible_worker.errors import ExitError
from crucible_worker.observe.access import Access, ServerTls
from crucible_worker.observe.server import HealthReport, HealthServer

REPORT = HealthReport(ok=False, ready=False, reasons=["polling has stalled"], body={"queue_url": "http://q"})
TOKEN = "a-token-of-8082"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("ADDRESS", "CERT", "KEY", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"CRUCIBLE_HEALTH_{name}", raising=False)
    monkeypatch.delenv("CRUCIBLE_CONFIG", raising=False)


def serving(report=REPORT, **more) -> HealthServer:
    metrics = lambda: ("text/plain", b"up 1\n")  # noqa: E731
    return HealthServer("127.0.0.1:0", health=lambda: report, status=lambda: {"slots": []}, metrics=metrics, **more)


def ask(port: int, path: str, authorization: str = "", context: ssl.SSLContext | None = None):
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context) if context else plain
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": authorization} if authorization else {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def certificate(folder, name: str) -> tuple[str, str]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-keyout", key, "-out", cert], check=True, capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def test_with_a_token_only_probes_are_open_and_they_learn_less():
    with serving(access=Access(lambda: TOKEN)) as running:
        for path in ("/", "/status", "/metrics", "/nope"):
            for given in ("", "Bearer wrong", basic("wrong"), f"Digest {TOKEN}", "Basic %%%", "Bearer \xff"):
                status, headers, body = ask(running.port, path, given)
                assert (status, TOKEN.encode() in body) == (401, False)
                assert headers["WWW-Authenticate"].startswith("Bearer, Basic realm=")
            for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
                assert ask(running.port, path, given)[0] == (404 if path == "/nope" else 200)
        assert ask(running.port, "/live")[0] == 200
        for path in ("/health", "/ready"):
            status, _, body = ask(running.port, path)
            assert (status, json.loads(body).keys()) == (503, {"status"})
            assert json.loads(ask(running.port, path, f"Bearer {TOKEN}")[2])["reasons"] == ["polling has stalled"]


def test_without_a_token_everybody_may_read():
    with serving() as running:
        assert ask(running.port, "/status", "Bearer whatever")[0] == 200


def test_tls_serves_and_a_peer_that_says_nothing_keeps_nobody_out(tmp_path):
    cert, key = certificate(tmp_path, "one")
    tls = ServerTls(cert, key)
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    with serving(tls=tls) as running:
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=5))
            assert ask(running.port, "/live", context=context)[0] == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(running.port, "/live")
        for new, old in zip(certificate(tmp_path, "two"), (cert, key), strict=True):
            (tmp_path / old).write_bytes((tmp_path / new).read_bytes())
        tls.reload()
        with pytest.raises(ssl.SSLError):
            ask(running.port, "/live", context=context)


def test_certificates_that_cannot_be_used_are_one_line(tmp_path):
    cert, key = certificate(tmp_path, "one")
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for pair in [("/nowhere", ""), (cert, ""), (cert, str(locked)), (key, key)]:
        with pytest.raises(ExitError, match=r"CRUCIBLE_HEALTH_CERT.*cannot be used") as caught:
            ServerTls(*pair)
        assert (caught.value.code, "\n" in str(caught.value)) == (64, False)


def test_healthcheck_follows_the_worker_s_settings(tmp_path, monkeypatch, capsys):
    cert, key = certificate(tmp_path, "one")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(tls=ServerTls(cert, key), access=Access(lambda: TOKEN)) as running:
        address = f"127.0.0.1:{running.port}"
        config = tmp_path / "worker.toml"
        config.write_text(f'health_cert = "{cert}"\nhealth_token_file = "{tmp_path / "token"}"\n')
        monkeypatch.setenv("CRUCIBLE_CONFIG", str(config))
        assert main(["healthcheck", "--address", address]) == 1
        assert capsys.readouterr().out == "unhealthy: polling has stalled\n"
        other, _ = certificate(tmp_path, "other")
        monkeypatch.setenv("CRUCIBLE_HEALTH_CERT", other)
        assert main(["healthcheck", "--address", address]) == 1
        assert "certificate verify failed" in capsys.readouterr().out
