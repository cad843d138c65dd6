"""`doctor` before Docker Engines that are not there, hang, are too old, or lack what a sandbox needs."""

import io
import json
import socket
import tarfile
import uuid
from pathlib import Path

import pytest
from doctor_support import fake_engine
from private_docker import private_docker

pytestmark = pytest.mark.engine
VERSION = {"Version": "18.09.1", "ApiVersion": "1.38", "MinAPIVersion": "1.12", "Os": "linux", "Arch": "amd64"}


def broken(said) -> list[str]:
    """What failed of the engine; the queue is not there in these tests."""
    return [name for name in said.failed() if not name.startswith("queue")]


SOCKETS = {
    "missing": (lambda path: None, "No such file or directory", "systemctl start docker"),
    "a file": (Path.touch, "is not a socket", "systemctl start docker"),
    "closed": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "Connection refused", "or set DOCKER_HOST"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the socket that nobody listens at
@pytest.mark.parametrize(("make", "found", "mend"), SOCKETS.values(), ids=SOCKETS)
def test_a_socket_that_is_none(doctor, tmp_path, make, found, mend):
    make(tmp_path / "d.sock")
    said = doctor(DOCKER_HOST=f"unix://{tmp_path}/d.sock")
    assert (said.code, broken(said)) == (69, ["docker socket"])
    assert found in said.checks["docker socket"]["found"]
    assert mend in said.checks["docker socket"]["mend"]
    assert said.checks["engine docker"] == {"status": "skip", "found": "needs 'image python'", "mend": ""}


def test_an_engine_elsewhere(doctor):
    said = doctor(DOCKER_HOST="tcp://127.0.0.1:1")
    assert (said.code, broken(said)) == (69, ["docker socket"])
    assert "Connection refused" in said.checks["docker socket"]["found"]
    assert "set DOCKER_HOST" in said.checks["docker socket"]["mend"]


ENGINES = {
    "too old": ({"/version": (200, VERSION)}, "docker API", "API 1.38; 1.41 or newer is needed", "Docker Engine 20.10"),
    "in trouble": (
        {"/version": (500, {"message": "no memory"})},
        "docker engine",
        "500 Server Error",
        "systemctl restart docker",
    ),
    "no engine": ({"/version": (200, b"<html>")}, "docker engine", "", "systemctl restart docker"),
}


@pytest.mark.parametrize(("answers", "name", "found", "mend"), ENGINES.values(), ids=ENGINES)
def test_an_engine_that_answers_badly(doctor, tmp_path, answers, name, found, mend):
    with fake_engine(tmp_path / "d.sock", answers) as url:
        said = doctor(DOCKER_HOST=url)
    assert (said.code, broken(said)[:1]) == (69, [name])
    assert found in said.checks[name]["found"]
    assert mend in said.checks[name]["mend"]


def test_an_engine_that_hangs(doctor, tmp_path):
    """It takes connections, and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d.sock"))
        listener.listen()
        said = doctor(DOCKER_HOST=f"unix://{tmp_path}/d.sock")
    assert (said.code, broken(said)) == (69, ["docker engine"])
    assert "systemctl restart docker" in said.checks["docker engine"]["mend"]


def test_a_runtime_that_is_not_there(doctor, sandbox_image):
    """The other engine works, so that only this one is at fault."""
    languages = f"python={sandbox_image}"
    said = doctor(CRUCIBLE_ENGINES="docker=runc,gvisor=none-such", CRUCIBLE_LANGUAGES=languages)
    assert (said.code, broken(said)) == (1, ["engine gvisor"])
    assert said.checks["engine docker"]["status"] == "pass"
    mend = said.checks["engine gvisor"]["mend"]
    assert '"none-such": {"path": "/usr/bin/none-such"' in mend
    assert "systemctl reload docker; or take gvisor out of CRUCIBLE_ENGINES" in mend
    assert doctor(CRUCIBLE_ENGINES="gvisor=none-such", CRUCIBLE_LANGUAGES=languages).code == 69


def test_an_image_that_is_not_there(doctor):
    said = doctor(CRUCIBLE_LANGUAGES="python=none-such:none")
    assert (said.code, broken(said)) == (69, ["image python"])
    assert said.checks["image python"]["mend"] == "crucible-worker.pyz image build --tag none-such:none"


def test_an_image_that_is_not_allowed_or_will_be_fetched(doctor, sandbox_image):
    languages = f"python={sandbox_image}"
    said = doctor(CRUCIBLE_LANGUAGES=languages, CRUCIBLE_IMAGES_ALLOWED="registry.local/*")
    assert (said.code, broken(said)) == (69, ["image python"])
    assert "CRUCIBLE_IMAGES_ALLOWED" in said.checks["image python"]["mend"]
    said = doctor(CRUCIBLE_LANGUAGES=f"{languages},other=none-such:none", CRUCIBLE_PULL="missing")
    assert (broken(said), said.warned()) == ([], ["image other"])


@pytest.fixture
def image_with_volume(daemon):
    """An image of one empty file that declares a volume."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    name = f"crucible-test:{uuid.uuid4().hex}"
    daemon._client().import_image_from_data(archive.getvalue(), *name.split(":"), changes=["VOLUME /data"])
    yield name
    daemon.remove_image(name)


def test_an_image_with_a_volume(doctor, sandbox_image, image_with_volume):
    """The engines are tried with the first language; a second one that is unfit does not stop them."""
    languages = {"python": sandbox_image, "other": {"image": image_with_volume, "command": ["sh"], "file": "main.sh"}}
    said = doctor(CRUCIBLE_LANGUAGES=json.dumps(languages))
    assert (said.code, broken(said)) == (1, ["image other"])
    assert "it declares volumes (/data)" in said.checks["image other"]["found"]
    assert "use another image (CRUCIBLE_LANGUAGES)" in said.checks["image other"]["mend"]


def test_an_engine_that_is_weakened_and_has_a_broken_runtime(doctor, tmp_path):
    """Its default seccomp profile allows everything: it runs nothing, and the self-test tells why."""
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    config = {"seccomp-profile": str(profile), "runtimes": {"kata": {"path": "/bin/false"}}}
    with private_docker(config) as docker:
        weak = {"DOCKER_HOST": docker.host, "CRUCIBLE_ENGINES": "docker=runc,other=kata"}
        said = doctor(**weak)
        told = doctor.call("--sandbox", "--json", **weak)
        left = doctor.call("--sandbox", DOCKER_HOST=docker.host)
    assert (said.code, broken(said)) == (69, ["engine docker", "engine other"])
    assert "take seccomp-profile out of" in said.checks["engine docker"]["mend"]
    assert "docker run --rm --runtime kata" in said.checks["engine other"]["mend"]
    engines = json.loads(told.stdout)["engines"]
    assert told.returncode == 1
    assert [control["name"] for control in engines["docker"] if control["status"] == "fail"] == [
        "a sandbox as asked for"
    ]
    assert [(control["name"], control["status"]) for control in engines["other"]] == [
        ("a sandbox as asked for", "fail")
    ]
    assert "\nFAIL docker, a sandbox as asked for: the daemon's seccomp profile is " in left.stdout
