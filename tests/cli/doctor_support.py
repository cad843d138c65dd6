"""What the tests of `doctor` share: the command itself, an engine that is none, certificates, an ordinary user."""

import datetime as dt
import http.server
import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from precondition import unavailable
from worker_process import clean_environment


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor --json` said."""

    code: int
    checks: Mapping[str, Mapping[str, str]]

    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if check["status"] == "fail"]

    def warned(self) -> list[str]:
        return [name for name, check in self.checks.items() if check["status"] == "warn"]


class Doctor:
    """Runs `doctor` as a user does, with nothing in its environment but what is given."""

    def __init__(self, state: Path) -> None:
        self._own = {"CRUCIBLE_STATE_DIR": str(state), "EVENT_BUS_URL": "none", "CRUCIBLE_ENGINES": "docker=runc"}
        self._own["CRUCIBLE_HEALTH_ADDRESS"] = "127.0.0.1:0"

    def call(self, *arguments: str, prefix: tuple[str, ...] = (), **settings: str) -> subprocess.CompletedProcess[str]:
        """`prefix` is a command that runs it in another way."""
        environment = clean_environment() | self._own | settings
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "crucible_worker", "doctor", *arguments], env=environment, cwd="/",
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    def __call__(self, prefix: tuple[str, ...] = (), **settings: str) -> Diagnosis:
        done = self.call("--json", prefix=prefix, **settings)
        assert done.stderr == ""
        said = json.loads(done.stdout)
        assert (said["exit_code"], said["ok"]) == (done.returncode, done.returncode == 0)
        return Diagnosis(done.returncode, {check.pop("name"): check for check in said["checks"]})


@pytest.fixture
def doctor(tmp_path) -> Doctor:
    (tmp_path / "state").mkdir()
    return Doctor(tmp_path / "state")


@pytest.fixture(scope="session")
def nobody() -> tuple[str, ...]:
    """What runs a command as an ordinary user. May read all, since Python may lie where only root looks."""
    read_all = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *read_all)
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], stderr=subprocess.DEVNULL).returncode:
        unavailable("to be somebody else needs setpriv and root")
    return prefix


class _Answers(http.server.BaseHTTPRequestHandler):
    answers: Mapping[str, tuple[int, object]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        code, document = next((a for end, a in self.answers.items() if path.endswith(end)), (404, {"message": path}))
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_engine(path: Path, answers: Mapping[str, tuple[int, object]]):
    """Something that answers like an engine at a Unix socket; its URL."""
    with socketserver.ThreadingUnixStreamServer(str(path), type("Bound", (_Answers,), {"answers": answers})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"unix://{path}"
        server.shutdown()
        thread.join()


class Authority:
    """A certificate authority in a folder, and the certificates that it signs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = self._path("ca.pem")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self._path("ca.key")]
        self._openssl("req", "-x509", *new, "-out", self.ca, "-days", "30", "-subj", "/CN=Test authority")

    def certificate(self, name: str, alternative: str, since: dt.timedelta = dt.timedelta()) -> tuple[str, str]:
        """(certificate, key) for one day from now, or `since` before."""
        certificate, key, request = (self._path(f"{name}.{kind}") for kind in ("pem", "key", "csr"))
        extension = Path(self._path(f"{name}.ext"))
        extension.write_text(f"subjectAltName={alternative}\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]
        self._openssl("req", *new, "-out", request, "-subj", f"/CN={name}")
        start = (dt.datetime.now(dt.UTC) - since - dt.timedelta(hours=1)).strftime("%Y-%m-%d %H:%M:%S")
        signed = ["-CA", self.ca, "-CAkey", self._path("ca.key"), "-CAcreateserial", "-extfile", str(extension)]
        days = ["-days", "1" if since else "30"]
        command = ["openssl", "x509", "-req", "-in", request, "-out", certificate, *days, *signed]
        utc = os.environ | {"TZ": "UTC"}
        subprocess.run(["faketime", start, *command], check=True, capture_output=True, env=utc)
        return certificate, key

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    """One whose certificates nobody trusts unless told to."""
    if shutil.which("openssl") is None or shutil.which("faketime") is None:
        unavailable("certificates need openssl and faketime")
    return Authority(tmp_path_factory.mktemp("authority"))
