"""`doctor` on hosts and before queues that are broken in many ways: what it finds, what mends it, how it ends."""

import contextlib
import datetime as dt
import email.utils
import fcntl
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, document, hang_up, never, status

from crucible_worker.doctor import host
from crucible_worker.doctor.checks import Check, Status, examine, exit_code, failed, passed

pytestmark = pytest.mark.engine
KEY = "a-key-of-great-secrecy"


class Queue(ScriptedServer):
    """Health for everybody, counts for who has the key; notes whether it is asked for anything else."""

    def __init__(self, key: str = "") -> None:
        super().__init__(document({"status": "healthy"}))
        self._key = key

    def answer(self, call):
        if call.path == "/status" and self._key and call.headers.get("x-api-key") != self._key:
            return status(401, json.dumps({"error": f"bad key {call.headers.get('x-api-key')}"}))
        return self.default


@pytest.fixture
def queue(sandbox_image):
    with Queue() as running:
        yield running


@pytest.fixture
def diagnose(doctor, sandbox_image):
    """Diagnose a host that is well but for the given settings."""
    return lambda **settings: doctor(CRUCIBLE_LANGUAGES=f"python={sandbox_image}", **settings)


@contextlib.contextmanager
def over_tls(server: ScriptedServer, certificate: tuple[str, str], client_ca: str = ""):
    """A server behind TLS; its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    with server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        yield server.url.replace("http:", "https:")


@pytest.fixture(scope="session")
def good(authority):
    return authority.certificate("good", "IP:127.0.0.1")


def test_a_host_that_is_well(diagnose, doctor, queue, daemon, sandbox_image):
    """Nothing is claimed, published or left behind."""
    found = diagnose(QUEUE_SERVICE_URL=queue.url, HOSTNAME="doctor-of-tests")
    assert found.code == 0
    assert {check["status"] for check in found.checks.values()} == {"pass", "skip"}
    assert [name for name, check in found.checks.items() if check["status"] == "skip"] == ["queue TLS", "event bus"]
    assert {(call.method, call.path) for call in queue.calls} == {("GET", "/health"), ("GET", "/status")}
    assert not daemon.containers({"crucible.worker": "doctor-of-tests"})
    told = doctor.call(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_LANGUAGES=f"python={sandbox_image}")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith("\nAll is well.\n")


def test_bad_settings_are_one_line_and_64(doctor):
    told = doctor.call("--json", CRUCIBLE_MEMORY="plenty")
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (64, "", 1)


# The queue: what it answers, the check that must fail, and what must be in its finding and in what mends it.
ANSWERS = {
    "404": (status(404, "{}"), "queue answer", "answered 404", "set QUEUE_SERVICE_URL to the Queue Service itself"),
    "500": (status(500, "oops"), "queue answer", "answered 500: oops", "read the queue's log"),
    "HTML": (
        status(200, "<html>\x1b[2Jlog in"),
        "queue answer",
        "not JSON: <html>\\x1b[2Jlog in",
        "a web page answered",
    ),
    "redirect": (status(302, "", Location="https://else"), "queue answer", "redirects (302) to https://else", "QUEUE_"),
    "hang-up": (hang_up, "queue answer", "cannot be reached", "https://127.0.0.1"),
    "black hole": (never, "queue answer", "no complete answer within 10 s", "read its log"),
}


@pytest.mark.parametrize(("answer", "name", "found", "mend"), ANSWERS.values(), ids=ANSWERS)
def test_a_queue_that_answers_badly(diagnose, queue, answer, name, found, mend):
    queue.default = answer
    said = diagnose(QUEUE_SERVICE_URL=queue.url)
    assert (said.code, said.failed()) == (1, [name])
    assert found in said.checks[name]["found"]
    assert mend in said.checks[name]["mend"]
    assert said.checks["queue key"] == {"status": "skip", "found": "needs 'queue answer'", "mend": ""}


@pytest.mark.parametrize(("key", "source"), [({}, "default); there is none"), ({"API_KEY": KEY}, "API_KEY)")])
def test_a_queue_that_refuses_the_key(diagnose, key, source):
    """It even repeats the key in its answer, which then is not shown."""
    with Queue(key="another") as queue:
        said = diagnose(QUEUE_SERVICE_URL=queue.url, **key)
    assert (said.code, said.failed()) == (1, ["queue key"])
    assert "answered 401" in said.checks["queue key"]["found"]
    assert said.checks["queue key"]["mend"].endswith(f"(now from: {source}")
    assert KEY not in json.dumps(said.checks)


def test_a_queue_that_takes_the_key(diagnose, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    with Queue(key=KEY) as queue:
        said = diagnose(QUEUE_SERVICE_URL=queue.url, API_KEY_FILE=str(tmp_path / "key"))
    assert (said.code, said.checks["queue key"]["found"]) == (0, "it takes the key")


def test_a_queue_with_another_time(diagnose, queue):
    date = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(hours=2), usegmt=True)
    queue.default = status(200, "{}", Date=date)
    said = diagnose(QUEUE_SERVICE_URL=queue.url)
    assert (said.code, said.warned()) == (0, ["queue clock"])
    assert "timedatectl" in said.checks["queue clock"]["mend"]


def nobody_there() -> str:
    """HOST:PORT where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


ROADS = {
    "no such name": (
        {"QUEUE_SERVICE_URL": "http://no-such-queue.invalid"}, "queue name", "no-such-queue.invalid has no address",
        "add no-such-queue.invalid to DNS or /etc/hosts, or set QUEUE_SERVICE_URL",
    ),
    "refused": ({"QUEUE_SERVICE_URL": "http://{nowhere}"}, "queue connection", "Connection refused", "start it, or"),
    "proxy to nowhere": (
        {"HTTP_PROXY": "http://user:pass-of-proxy@{nowhere}"}, "queue connection", "the proxy 127.0.0.1",
        "correct HTTP_PROXY, or add 127.0.0.1 to NO_PROXY",
    ),
    "CA file missing": (
        {"CRUCIBLE_CA_FILE": "/nowhere.pem"}, "certificates", "CRUCIBLE_CA_FILE /nowhere.pem cannot be used",
        "correct or unset CRUCIBLE_CA_FILE",
    ),
    "no TLS there": (
        {"QUEUE_SERVICE_URL": "https://{queue}"}, "queue TLS", "no TLS with it", "set QUEUE_SERVICE_URL to http://",
    ),
    "event bus down": (
        {"EVENT_BUS_URL": "http://{nowhere}/events"}, "event bus", "/events cannot be reached", "set EVENT_BUS_URL",
    ),
    "Redis down": (
        {"EVENT_BUS_URL": "redis://:pass-of-redis@{nowhere}"}, "event bus", "redis://****@", "set EVENT_BUS_URL to",
    ),
    "odd Redis URL": ({"EVENT_BUS_URL": "redis://127.0.0.1:nan"}, "event bus", "EVENT_BUS_URL cannot", "set EVENT_"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "name", "found", "mend"), ROADS.values(), ids=ROADS)
def test_a_road_that_leads_nowhere(diagnose, queue, settings, name, found, mend):
    places = {"queue": queue.url.removeprefix("http://"), "nowhere": nobody_there()}
    said = diagnose(**{"QUEUE_SERVICE_URL": queue.url} | {key: text.format(**places) for key, text in settings.items()})
    assert (said.code, said.failed()) == (1, [name])
    assert found in said.checks[name]["found"]
    assert mend in said.checks[name]["mend"]
    assert "pass-of" not in json.dumps(said.checks)


def test_a_proxy_that_works_is_named(diagnose, queue):
    """A proxy for plain HTTP is a server that is asked for whole URLs."""
    said = diagnose(QUEUE_SERVICE_URL="http://behind.invalid", http_proxy=queue.url)
    assert said.code == 0
    assert "http_proxy leads through 127.0.0.1" in said.checks["queue proxy"]["found"]
    assert {call.path for call in queue.calls} == {"http://behind.invalid/health", "http://behind.invalid/status"}


def test_an_event_bus_that_nobody_asked_for_only_warns(diagnose, queue):
    said = diagnose(QUEUE_SERVICE_URL=queue.url, API_SERVICE_URL=f"http://{nobody_there()}", EVENT_BUS_URL="")
    assert (said.code, said.warned()) == (0, ["event bus"])
    assert "derived from API_SERVICE_URL" in said.checks["event bus"]["mend"]


def test_event_buses_that_answer(diagnose, queue, tmp_path):
    with Queue() as bus:
        said = diagnose(QUEUE_SERVICE_URL=queue.url, EVENT_BUS_URL=f"{bus.url}/events")
    assert said.checks["event bus"]["status"] == "pass"
    assert {call.method for call in bus.calls} == {"GET"}, "nothing is published"
    port = nobody_there().rpartition(":")[2]
    server = subprocess.Popen(
        ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--requirepass", "right"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        try:
            assert any("Ready to accept connections" in line for line in server.stdout)
            well = diagnose(QUEUE_SERVICE_URL=queue.url, EVENT_BUS_URL=f"redis://:right@127.0.0.1:{port}")
            ill = diagnose(QUEUE_SERVICE_URL=queue.url, EVENT_BUS_URL=f"redis://:pass-of-redis@127.0.0.1:{port}")
        finally:
            server.kill()
    assert (well.code, well.checks["event bus"]["status"]) == (0, "pass")
    assert (ill.code, ill.failed()) == (1, ["event bus"])
    assert "password in EVENT_BUS_URL" in ill.checks["event bus"]["mend"]
    assert "pass-of-redis" not in json.dumps(ill.checks)


def test_a_queue_over_tls(diagnose, authority, good):
    with over_tls(Queue(), good) as url:
        said = diagnose(QUEUE_SERVICE_URL=url, CRUCIBLE_CA_FILE=authority.ca)
        stranger = diagnose(QUEUE_SERVICE_URL=url)
        plain = diagnose(QUEUE_SERVICE_URL=url.replace("https:", "http:"))
    assert said.code == 0
    assert said.checks["queue TLS"]["found"].startswith("TLSv1.3, a certificate until ")
    assert (stranger.code, stranger.failed()) == (1, ["queue TLS"])
    assert "unable to get local issuer" in stranger.checks["queue TLS"]["found"]
    assert "set CRUCIBLE_CA_FILE" in stranger.checks["queue TLS"]["mend"]
    assert stranger.checks["queue answer"]["status"] == "skip"
    assert (plain.code, plain.failed()) == (1, ["queue answer"])
    assert "set QUEUE_SERVICE_URL to https://127.0.0.1" in plain.checks["queue answer"]["mend"]


CERTIFICATES = {
    "expired": ("IP:127.0.0.1", dt.timedelta(days=9), "certificate has expired", "have the peer's certificate renewed"),
    "early": ("IP:127.0.0.1", dt.timedelta(days=-9), "not yet valid", "set this host's clock"),
    "elsewhere": ("DNS:queue.example", dt.timedelta(), "IP address mismatch", "an address that the certificate is for"),
}


@pytest.mark.parametrize(("alternative", "since", "found", "mend"), CERTIFICATES.values(), ids=CERTIFICATES)
def test_a_certificate_that_is_not_believed(diagnose, authority, request, alternative, since, found, mend):
    certificate = authority.certificate(request.node.callspec.id, alternative, since)
    with over_tls(Queue(), certificate) as url:
        said = diagnose(QUEUE_SERVICE_URL=url, CRUCIBLE_CA_FILE=authority.ca)
    assert (said.code, said.failed()) == (1, ["queue TLS"])
    assert found in said.checks["queue TLS"]["found"]
    assert mend in said.checks["queue TLS"]["mend"]


def test_a_queue_that_wants_a_certificate_of_ours(diagnose, authority, good):
    with over_tls(Queue(), good, client_ca=authority.ca) as url:
        trusted = {"QUEUE_SERVICE_URL": url, "CRUCIBLE_CA_FILE": authority.ca}
        without = diagnose(**trusted)
        with_one = diagnose(**trusted, CRUCIBLE_CLIENT_CERT=good[0], CRUCIBLE_CLIENT_KEY=good[1])
    assert (without.code, without.failed()) == (1, ["queue answer"])
    assert "set CRUCIBLE_CLIENT_CERT" in without.checks["queue answer"]["mend"]
    assert with_one.code == 0


def test_a_state_directory_that_is_a_file(diagnose, queue, tmp_path):
    (tmp_path / "file").touch()
    said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_STATE_DIR=str(tmp_path / "file"))
    assert (said.code, said.failed()) == (1, ["state directory"])
    assert "is not a directory" in said.checks["state directory"]["found"]
    assert "CRUCIBLE_STATE_DIR" in said.checks["state directory"]["mend"]
    assert said.checks["disk"]["status"] == "skip"


def test_a_state_directory_that_is_not_there_is_not_made(diagnose, queue, tmp_path):
    said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_STATE_DIR=str(tmp_path / "a" / "b"))
    assert (said.code, said.checks["state directory"]["found"]) == (0, f"{tmp_path}/a/b can be made")
    assert not (tmp_path / "a").exists()


def test_a_state_directory_that_a_worker_holds(diagnose, queue, tmp_path):
    """A worker that runs is no fault; a second one would have one."""
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = diagnose(QUEUE_SERVICE_URL=queue.url)
    assert (said.code, said.warned()) == (0, ["state directory"])
    assert "in use by a running worker" in said.checks["state directory"]["found"]
    assert "a CRUCIBLE_STATE_DIR of its own" in said.checks["state directory"]["mend"]


def test_a_disk_without_room(diagnose, queue):
    said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_DISK_RESERVE="900000g")
    assert (said.code, said.failed()) == (1, ["disk"])
    assert "CRUCIBLE_DISK_RESERVE" in said.checks["disk"]["mend"]


def test_state_in_memory_is_worth_a_warning(diagnose, queue):
    said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_STATE_DIR="memory")
    assert (said.code, said.warned()) == (0, ["state directory"])


@pytest.fixture
def open_folder():
    """A folder that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="crucible-doctor-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_ordinary_user_without_rights(doctor, nobody, open_folder):
    """A state directory and a socket that are there, for others."""
    path = open_folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.chown(path, 0, 1)
        path.chmod(0o660)
        said = doctor(nobody, CRUCIBLE_STATE_DIR=str(open_folder), DOCKER_HOST=f"unix://{path}")
    assert said.code == 69
    assert said.failed()[:2] == ["state directory", "docker socket"]
    assert "chown nobody" in said.checks["state directory"]["mend"]
    assert "this user may not use it (nobody)" in said.checks["docker socket"]["found"]
    assert said.checks["docker socket"]["mend"].startswith("usermod -aG daemon nobody, then log in again")


def test_a_state_directory_of_another_user(diagnose, queue, tmp_path):
    """What root finds is not what the worker will find."""
    os.chown(tmp_path / "state", 65534, 65534)
    said = diagnose(QUEUE_SERVICE_URL=queue.url)
    assert (said.code, said.warned()) == (0, ["state directory"])
    assert "runuser -u nobody" in said.checks["state directory"]["mend"]


def test_a_health_address_that_is_taken_or_not_ours(diagnose, queue):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_HEALTH_ADDRESS=f"127.0.0.1:{port}")
    assert (said.code, said.warned()) == (0, ["health address"])
    said = diagnose(QUEUE_SERVICE_URL=queue.url, CRUCIBLE_HEALTH_ADDRESS="192.0.2.1:8082")
    assert (said.code, said.failed()) == (1, ["health address"])
    assert said.checks["health address"]["mend"] == "set CRUCIBLE_HEALTH_ADDRESS to another"


def test_what_an_interpreter_may_lack():
    assert host.python((3, 10, 12)).mend == "start it with Python 3.11 or newer"
    lacking = host.python(modules=("sqlite3", "no_such_module"))
    assert (lacking.status, "no_such_module" in lacking.found) == (Status.FAIL, True)


def test_an_unpack_directory_that_others_may_write(tmp_path):
    """A sticky folder above it, such as /tmp, does no harm."""
    package = tmp_path / "site-packages" / "crucible_worker"
    package.mkdir(parents=True)
    assert host.unpacked("/x/worker.pyz", package).status is Status.PASS
    package.parent.chmod(0o777)
    found = host.unpacked("/x/worker.pyz", package)
    assert (found.status, found.mend.startswith(f"chmod go-w {package.parent}, or set SHIV_ROOT")) == (
        Status.FAIL,
        True,
    )
    package.parent.chmod(0o755)
    os.chown(package, 65534, 65534)
    assert host.unpacked("/x/worker.pyz", package).status is Status.FAIL
    assert host.unpacked("/x/__main__.py", package).status is Status.PASS


def test_a_clock_without_a_battery():
    assert host.clock(dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).status is Status.FAIL


def test_checks_rest_on_each_other():
    """What rests on something that failed or hangs is skipped, also at one remove; what raises has failed."""

    def raises():
        raise RuntimeError("boom")

    gate = threading.Event()
    checks = [
        Check("a", lambda: failed("no", "mend a")),
        Check("b", lambda: passed("yes"), ("a",)),
        Check("c", lambda: passed("yes"), ("b",)),
        Check("hangs", gate.wait, seconds=0.1, mend="kick it"),
        Check("raises", raises, mend="mend it"),
        Check("fine", lambda: passed("yes")),
    ]
    found = dict(examine(checks))
    gate.set()
    assert [finding.status.value for finding in found.values()] == ["fail", "skip", "skip", "fail", "fail", "pass"]
    assert (found["c"].found, found["hangs"].mend, found["raises"].found) == ("needs 'b'", "kick it", "boom")


@pytest.mark.parametrize(
    ("engines", "other", "code"),
    [("", "pass", 0), ("", "warn", 0), ("", "fail", 1), ("pp", "pass", 0), ("pf", "pass", 1), ("ff", "pass", 69),
     ("fs", "pass", 69), ("ss", "fail", 69)],
)  # fmt: skip
def test_the_exit_code(engines, other, code):
    names = {"p": Status.PASS, "f": Status.FAIL, "s": Status.SKIP}
    found = [(f"engine {n}", passed("") if e == "p" else host.Finding(names[e], "")) for n, e in enumerate(engines)]
    assert exit_code([*found, ("other", host.Finding(Status(other), ""))]) == code
