"""Port 8082 of a real worker: what its page shows of a hostile task, and a token and a certificate that are renewed."""

import http.client
import signal
import ssl
import subprocess
import sys
import time

import pytest
from scripted_server import PATIENCE
from worker_process import ROOT, clean_environment

pytestmark = pytest.mark.engine
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e"


def test_the_page_of_a_worker_shows_a_verdict_and_repeats_no_markup(queue, start_worker):
    queue.push({"eval_id": HOSTILE, "code": "print('hi')"}, {"eval_id": "bad", "language": HOSTILE, "code": ""})
    worker = start_worker(API_KEY="the-key-itself")
    queue.completed(HOSTILE)
    queue.failed("bad")
    status, page = worker.fetch("/")
    assert status == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J\\u202e" in page
    assert "<script>alert" not in page
    assert "language_unknown" in page
    assert "the-key-itself" not in page
    assert worker.get("/status")[1]["uptime_seconds"] > 0
    assert 'crucible_worker_tasks_total{engine="docker",reason="exited"} 1.0' in worker.fetch("/metrics")[1]
    assert worker.stop() == 0


def test_token_and_certificate_are_asked_for_followed_and_renewed(start, tmp_path):
    cert, token = tmp_path / "cert.pem", tmp_path / "token"

    def renew(word: str) -> None:
        token.write_text(f"{word}\n")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", f"/CN={word}", "-keyout", tmp_path / "key", "-out", cert], check=True, capture_output=True,
        )  # fmt: skip
        cert.write_text(cert.read_text() + (tmp_path / "key").read_text())

    def ask(word: str) -> int:
        context = ssl.create_default_context(cafile=cert)
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", worker.port, timeout=PATIENCE, context=context)
        try:
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {word}"})
            return connection.getresponse().status
        finally:
            connection.close()

    renew("first-token")
    settings = {"CRUCIBLE_HEALTH_CERT": str(cert), "CRUCIBLE_HEALTH_TOKEN_FILE": str(token)}
    worker = start(DOCKER_HOST="unix:///nonexistent.sock", **settings)
    assert (ask("first-token"), ask("second-token"), ask("")) == (200, 401, 401)
    told = subprocess.run(
        [sys.executable, "-m", "crucible_worker", "healthcheck", "--address", f"127.0.0.1:{worker.port}"],
        env=clean_environment() | settings, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE,
    )  # fmt: skip
    assert told.returncode == 1
    assert told.stdout.startswith("unhealthy: no engine works: docker: "), told
    renew("second-token")
    worker.signal(signal.SIGHUP)
    worker.event("reloading")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            assert (ask("second-token"), ask("first-token")) == (200, 401)
            break
        except (ssl.SSLError, AssertionError):
            assert time.monotonic() < until
    assert worker.stop() == 0
    assert "-token" not in "".join(worker.raw).replace("health_token", "")
