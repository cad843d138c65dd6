"""`doctor` on set-ups that are broken in one way each: the check that says so, what mends it, and the exit code."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crucible_worker import settings, statefile
from crucible_worker.cli import checks
from crucible_worker.engines import selftest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.engine


class Server(ThreadingHTTPServer):
    """Answers everything alike, over TLS where a certificate is given, or not at all."""

    daemon_threads = True

    def __init__(self, status=200, body="{}", certificate=None, silent=False) -> None:
        self.answer, self.silent = (status, body.encode()), threading.Event()
        if not silent:
            self.silent.set()
        super().__init__(("127.0.0.1", 0), _Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request, client_address) -> None:
        """A client that does not trust us is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.silent.wait(60)
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args) -> None:  # noqa: A002
        pass


class UnixServer(Server):
    """The same on a unix socket: an engine that is not well."""

    address_family = socket.AF_UNIX

    def __init__(self, path, **answer) -> None:
        self._path = str(path)
        super().__init__(**answer)

    def server_bind(self) -> None:
        self.socket.bind(self._path)
        self.server_address, self.server_name, self.server_port = ("unix", 0), "unix", 0


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate of its own authority, and its key."""
    cert, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    kind = "IP" if name[0].isdigit() else "DNS"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
         "-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def refused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory, daemon, sandbox_image):
    """Every set-up examined, several at once: (exit code, checks by name) by the set-up's name."""
    import docker

    folder = tmp_path_factory.mktemp("doctor")
    well, servers = Server(), []

    def server(**answer) -> str:
        servers.append(Server(**answer))
        return f"http{'s' if 'certificate' in answer else ''}://127.0.0.1:{servers[-1].port}"

    def engine(name: str, **answer) -> str:
        path = folder / f"{name}.sock"
        servers.append(UnixServer(path, **answer))
        return f"unix://{path}"

    good = {
        "QUEUE_SERVICE_URL": f"http://127.0.0.1:{well.port}", "EVENT_BUS_URL": "none", "DOCKER_HOST": daemon.url,
        "CRUCIBLE_ENGINES": "docker=runc", "CRUCIBLE_LANGUAGES": f"python={sandbox_image}",
        "CRUCIBLE_STATE_DIR": str(folder / "state"), "HOSTNAME": "test-doctor",
    }  # fmt: skip
    (folder / "file").write_text("")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(folder / "dead.sock"))
    taken = folder / "taken"
    taken.mkdir()
    lock = statefile.lock_directory(str(taken))
    client = docker.APIClient(base_url=daemon.url, version="auto")
    (folder / "empty").mkdir()
    archive = subprocess.run(["tar", "-c", "-C", folder / "empty", "."], check=True, capture_output=True).stdout
    client.import_image_from_data(archive, "crucible-test-doctor", "volumes", changes=["VOLUME /data"])
    ours = certificate(folder, "127.0.0.1")
    elsewhere = certificate(folder, "elsewhere.example")
    version = json.dumps({"ApiVersion": "1.24", "Version": "1.12"})
    variations = {
        "all well": {},
        "no socket": {"DOCKER_HOST": f"unix://{folder}/none.sock"},
        "no socket but a file": {"DOCKER_HOST": f"unix://{folder}/file"},
        "nobody behind the socket": {"DOCKER_HOST": f"unix://{folder}/dead.sock"},
        "an engine that hangs": {"DOCKER_HOST": engine("hangs", silent=True)},
        "an engine that is too old": {"DOCKER_HOST": engine("old", body=version)},
        "an engine that fails": {"DOCKER_HOST": engine("fails", status=500, body="no")},
        "a runtime nobody knows": {"CRUCIBLE_ENGINES": "docker=none-such"},
        "one runtime of two": {"CRUCIBLE_ENGINES": "docker=runc,gvisor=none-such"},
        "no image": {"CRUCIBLE_LANGUAGES": "python=none:such"},
        "an image with volumes": {"CRUCIBLE_LANGUAGES": "python=crucible-test-doctor:volumes"},
        "an image that is not allowed": {"CRUCIBLE_IMAGES_ALLOWED": "registry.local/*"},
        "an image to be pulled": {
            "CRUCIBLE_LANGUAGES": f"python={sandbox_image},x=none:such", "CRUCIBLE_PULL": "missing",
        },
        "a state directory that is a file": {"CRUCIBLE_STATE_DIR": f"{folder}/file"},
        "a state directory below a file": {"CRUCIBLE_STATE_DIR": f"{folder}/file/state"},
        "a state directory in use": {"CRUCIBLE_STATE_DIR": str(taken)},
        "no state directory": {"CRUCIBLE_STATE_DIR": "memory"},
        "a full disk": {"CRUCIBLE_DISK_RESERVE": "100000g"},
        "a queue nobody knows": {"QUEUE_SERVICE_URL": "http://none-such.invalid:8081"},
        "a queue that is down": {"QUEUE_SERVICE_URL": f"http://127.0.0.1:{refused_port()}"},
        "a queue that hangs": {"QUEUE_SERVICE_URL": server(silent=True)},
        "a queue of an unknown authority": {"QUEUE_SERVICE_URL": server(certificate=ours)},
        "a queue of a known authority": {"QUEUE_SERVICE_URL": server(certificate=ours), "CRUCIBLE_CA_FILE": ours[0]},
        "a certificate for another name": {
            "QUEUE_SERVICE_URL": server(certificate=elsewhere), "CRUCIBLE_CA_FILE": elsewhere[0],
        },
        "TLS to a port without": {"QUEUE_SERVICE_URL": f"https://127.0.0.1:{well.port}"},
        "a CA file that is not there": {"CRUCIBLE_CA_FILE": "/none.pem"},
        "a queue that wants a key": {"QUEUE_SERVICE_URL": server(status=401, body="no")},
        "a queue that wants another key": {"QUEUE_SERVICE_URL": server(status=403, body="no"), "API_KEY": "s3cret-key"},
        "no queue but something": {"QUEUE_SERVICE_URL": server(status=404, body="no")},
        "a queue in trouble": {"QUEUE_SERVICE_URL": server(status=500, body="no")},
        "a portal's page": {"QUEUE_SERVICE_URL": server(body="<html>Please log in")},
        "a proxy that is down": {"http_proxy": f"http://127.0.0.1:{refused_port()}"},
        "an event bus that is down": {"EVENT_BUS_URL": f"http://127.0.0.1:{refused_port()}/events"},
        "a Redis that is down": {"EVENT_BUS_URL": f"redis://:s3cret-key@127.0.0.1:{refused_port()}/0"},
    }  # fmt: skip

    def examine(changes: dict) -> tuple[int, dict, str]:
        kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}}
        done = subprocess.run(
            [sys.executable, "-m", "crucible_worker", "doctor", "--json"],
            env=kept | good | changes | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert not done.stderr, done.stderr
        return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}, done.stdout

    with ThreadPoolExecutor(4) as pool:
        yield dict(zip(variations, pool.map(examine, variations.values()), strict=True))
    for one in [well, *servers]:
        one.silent.set()
        one.shutdown()
        one.server_close()
    dead.close()
    os.close(lock)
    client.remove_image("crucible-test-doctor:volumes")
    client.close()
    assert not daemon.containers({"crucible.worker": "test-doctor"})


# The set-up, the check that tells, how, the exit code, and words of what is found and of what mends it.
BROKEN = [
    ("no socket", "engine socket", "fail", 69, "there is no /", "start the engine"),
    ("no socket but a file", "engine socket", "fail", 69, "is not a socket", "DOCKER_HOST"),
    ("nobody behind the socket", "engine socket", "fail", 69, "nobody answers", "restart the engine"),
    ("an engine that hangs", "engine API", "fail", 69, "", "restart it"),
    ("an engine that is too old", "engine API", "fail", 69, "it speaks API 1.24", "20.10 or newer"),
    ("an engine that fails", "engine API", "fail", 69, "", "restart it"),
    ("a runtime nobody knows", "engine docker", "fail", 69, "no runtime none-such", "CRUCIBLE_ENGINES"),
    ("one runtime of two", "engine gvisor", "fail", 1, "no runtime none-such", "install none-such"),
    ("no image", "image of python", "fail", 69, "none:such is not on this host", "docker load"),
    ("an image with volumes", "image of python", "fail", 69, "declares volumes (/data)", "without VOLUME"),
    ("an image that is not allowed", "image of python", "fail", 69, "not among the allowed", "CRUCIBLE_IMAGES_ALLOWED"),
    ("an image to be pulled", "image of x", "warn", 0, "not here yet", "pulled with the first task"),
    ("a state directory that is a file", "state directory", "fail", 1, "cannot be written", "CRUCIBLE_STATE_DIR"),
    ("a state directory below a file", "state directory", "fail", 1, "cannot be written", "CRUCIBLE_STATE_DIR"),
    ("a state directory in use", "state directory", "warn", 0, "a worker is using", "CRUCIBLE_STATE_DIR"),
    ("no state directory", "state directory", "warn", 0, "in memory", "CRUCIBLE_STATE_DIR"),
    ("a full disk", "disk", "fail", 1, "must stay", "make room"),
    ("a queue nobody knows", "queue address", "fail", 1, "nobody knows none-such.invalid", "QUEUE_SERVICE_URL"),
    ("a queue that is down", "queue connection", "fail", 1, "no connection to 127.0.0.1", "QUEUE_SERVICE_URL"),
    ("a queue that hangs", "queue key", "fail", 1, "no complete answer", "QUEUE_SERVICE_URL"),
    ("a queue of an unknown authority", "queue TLS", "fail", 1, "not trusted: self", "CRUCIBLE_CA_FILE"),
    ("a certificate for another name", "queue TLS", "fail", 1, "not trusted: IP address mismatch", "CRUCIBLE_CA_FILE"),
    ("TLS to a port without", "queue TLS", "fail", 1, "no TLS", "http://"),
    ("a CA file that is not there", "certificates", "fail", 1, "/none.pem cannot be used", "CRUCIBLE_CA_FILE"),
    ("a queue that wants a key", "queue key", "fail", 1, "(without a key)", "API_KEY_FILE"),
    ("a queue that wants another key", "queue key", "fail", 1, "(with the key)", "API_KEY_FILE"),
    ("no queue but something", "queue key", "fail", 1, "404", "QUEUE_SERVICE_URL"),
    ("a queue in trouble", "queue key", "fail", 1, "500", "QUEUE_SERVICE_URL"),
    ("a portal's page", "queue key", "fail", 1, "not JSON", "QUEUE_SERVICE_URL"),
    ("a proxy that is down", "queue connection", "fail", 1, "the proxy", "HTTP_PROXY"),
    ("an event bus that is down", "event bus connection", "warn", 0, "no connection", "EVENT_BUS_URL"),
    ("a Redis that is down", "event bus", "warn", 0, "Redis", "EVENT_BUS_URL"),
]


@pytest.mark.parametrize(("setup", "name", "outcome", "code", "found", "mend"), BROKEN, ids=[row[0] for row in BROKEN])
def test_what_is_wrong_is_told_with_what_mends_it(cases, setup, name, outcome, code, found, mend):
    exit_code, checked, printed = cases[setup]
    check = checked[name]
    assert (check["outcome"], exit_code) == (outcome, code), checked
    assert found in check["found"], check
    assert mend in check["mend"], check
    assert "Traceback" not in printed
    assert "s3cret-key" not in printed
    wrong = [other for other in checked.values() if other["outcome"] == "fail" and other["name"] != name]
    assert not wrong


@pytest.mark.parametrize("setup", ["all well", "a queue of a known authority"])
def test_where_all_is_well_nothing_is_to_be_mended(cases, setup):
    exit_code, checked, _ = cases[setup]
    assert exit_code == 0
    assert {c["outcome"] for c in checked.values()} <= {"pass", "skip", "warn"}
    assert [c["name"] for c in checked.values() if c["outcome"] == "warn"] in ([], ["unpack directory"])


def test_what_builds_on_something_broken_is_skipped(cases):
    _, checked, _ = cases["no socket"]
    for name in ("engine API", "clock", "image of python", "engine docker"):
        assert (checked[name]["outcome"], checked[name]["found"][:6]) == ("skip", "needs:")
    assert checked["queue key"]["outcome"] == "pass"


def test_a_socket_that_this_user_may_not_use(daemon, tmp_path):
    """As an ordinary user, whom only another process can be."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    loaded = settings.load({}, {"DOCKER_HOST": daemon.url}, {})
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        examination = checks.Examination(loaded)
        check = examination._check("engine socket", examination._socket)
        os.write(tell, json.dumps([check.outcome, check.found, check.mend]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    outcome, found, mend = json.loads(os.read(told, 10_000))
    os.close(told)
    os.close(tell)
    assert (outcome, "user 65534 may not use" in found, "usermod -aG docker" in mend) == ("fail", True, True)


def doctor(*arguments, **changes):
    kept = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "LANG"}}
    return subprocess.run(
        [sys.executable, "-m", "crucible_worker", "doctor", *arguments],
        env=kept | changes | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_sandboxes_of_this_host_hold(daemon, sandbox_image, engine_runtime):
    engine_runtime("runsc")
    done = doctor(
        "--sandbox",
        "--json",
        DOCKER_HOST=daemon.url,
        CRUCIBLE_LANGUAGES=f"python={sandbox_image}",
        HOSTNAME="test-self",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    engines = json.loads(done.stdout)["engines"]
    assert set(engines) == {"docker", "gvisor"}
    for controls in engines.values():
        assert len(controls) >= 23
        assert [c for c in controls if c["holds"] is False] == []
    assert not daemon.containers({"crucible.worker": "test-self"})


def test_the_table_names_what_does_not_hold_and_what_cannot_be_had(daemon, sandbox_image):
    done = doctor("--sandbox", DOCKER_HOST=daemon.url, CRUCIBLE_LANGUAGES=f"python={sandbox_image}",
                  CRUCIBLE_ENGINES="docker=runc,other=none-such", HOSTNAME="test-self")  # fmt: skip
    assert done.returncode == 1
    assert "other: no sandbox can be had: " in done.stdout
    assert "not root" in done.stdout
    nothing = doctor("--sandbox", DOCKER_HOST="unix:///none.sock", HOSTNAME="test-self")
    assert nothing.returncode == 69
    assert "Traceback" not in nothing.stdout + nothing.stderr


WEAKER = {
    "ReadonlyRootfs": (False, "read-only root"),
    "NetworkMode": ("host", "no network"),
    "CapDrop": ([], "no capabilities"),
    "Memory": (0, "memory limit"),
    "PidsLimit": (0, "process limit"),
    "SecurityOpt": ([], "no new privileges"),
    "Ulimits": ([], "limits of a process"),
    "Tmpfs": (
        dict.fromkeys(("/sandbox", "/tmp"), "rw,exec,dev,suid,uid=65534,mode=0777"),
        "writable folders nosuid, nodev",
    ),
}  # fmt: skip


@pytest.mark.parametrize("field", WEAKER)
def test_a_weaker_sandbox_does_not_pass(field, daemon, sandbox_image, monkeypatch):
    """The policy changed, and its comparison with what the engine made taken away."""
    from crucible_worker.engines import policy
    from crucible_worker.engines.prepared import Maker
    from crucible_worker.model import Language

    value, control = WEAKER[field]
    original = policy.container_config

    def weaker(**asked):
        config = original(**asked)
        config["HostConfig"][field] = value
        if field == "CapDrop":
            config["User"] = "0:0"
        if field == "Memory":
            config["HostConfig"]["MemorySwap"] = 0
        return config

    monkeypatch.setattr(policy, "container_config", weaker)
    monkeypatch.setattr(Maker, "_verify", lambda *_: "")
    limits = selftest.Limits(timeout_seconds=8.0, memory_bytes=96 << 20, processes=16, tmp_bytes=8 << 20)
    monkeypatch.setattr(selftest, "LIMITS", limits)
    controls = selftest.examine(daemon, "runc", Language(sandbox_image), "test-self")
    assert control in [c.name for c in controls if c.holds is False], controls
