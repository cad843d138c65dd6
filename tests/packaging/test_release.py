"""The release: the same bytes wherever it is made, complete, signed, and enough for a host without a network."""

import json
import re
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from precondition import unavailable

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "crucible-worker"
# Run in a network namespace of its own, whose only interface is a loopback that is down.
INSTALL = """
set -eu
test "$(grep -c : /proc/net/dev)" = 1
! ping -c 1 127.0.0.1 2>/dev/null
sha256sum --check --quiet SHA256SUMS
docker load --quiet -i images/crucible-sandbox-python.tar
./crucible-worker.pyz image check
echo 'print(6 * 7)' > /tmp/"$1".py
./crucible-worker.pyz exec --json /tmp/"$1".py
"""


@pytest.fixture(scope="session")
def key(tmp_path_factory) -> Path:
    """A signing key."""
    path = tmp_path_factory.mktemp("key") / "release"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="session")
def releases(make, key, tmp_path_factory) -> list[Path]:
    """The same release, made in two places."""
    places = [
        (tmp_path_factory.mktemp("release") / "here", "022"),
        (tmp_path_factory.mktemp("r") / "else where", "077"),
    ]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda place: make(place[0], "release", umask=place[1], SIGNING_KEY=str(key)), places)
        return [next(folder.glob("*.tar")) for folder in made]


@pytest.fixture(scope="session")
def unpacked(releases, tmp_path_factory) -> Path:
    """What comes out of it."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", releases[0], "-C", folder], check=True)
    return next(folder.iterdir())


def test_two_makers_get_the_same_bytes(releases):
    assert releases[0].name == releases[1].name
    assert releases[0].read_bytes() == releases[1].read_bytes()


def test_every_file_is_in_the_sums(unpacked):
    listed = {line.split(maxsplit=1)[1] for line in (unpacked / "SHA256SUMS").read_text().splitlines()}
    present = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert present - listed == {"SHA256SUMS", "SHA256SUMS.sig"}
    assert listed < present
    assert {"crucible-worker.pyz", "README.md", "docs/runbook.md", "deploy/grafana/alerts.yaml"} <= listed


def verified(folder: Path, key: Path) -> bool:
    """Whether the sums bear the signature of a key, by the command that the documents give."""
    allowed = key.with_name("allowed_signers")
    allowed.write_text(f"releases {key.with_suffix('.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "releases", "-n", NAMESPACE, "-s", "SHA256SUMS.sig"]
    with (folder / "SHA256SUMS").open("rb") as sums:
        return subprocess.run(command, stdin=sums, cwd=folder, capture_output=True).returncode == 0


def test_the_signature_is_of_these_sums_and_this_key(unpacked, key, tmp_path):
    assert verified(unpacked, key)
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    assert not verified(unpacked, other)
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        shutil.copy(unpacked / name, tmp_path)
    with (tmp_path / "SHA256SUMS").open("a") as sums:
        sums.write("0" * 64 + "  added\n")
    assert not verified(tmp_path, key)


def test_the_bill_of_materials_has_what_is_locked(unpacked):
    document = json.loads((unpacked / "sbom.cdx.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    lock = (ROOT / "requirements.lock").read_text()
    pins = set(re.findall(r"^(\S+)==(\S+) ", lock, flags=re.MULTILINE))
    libraries = [part for part in document["components"] if part["type"] == "library"]
    assert {(part["name"], part["version"]) for part in libraries} == pins
    assert {part["hashes"][0]["content"] for part in libraries} == set(re.findall(r"sha256:(\w{64})", lock))
    assert all(part["licenses"] for part in libraries)
    assert "unknown" not in json.dumps(document)
    references = {part["bom-ref"] for part in document["components"]} | {"crucible-worker"}
    assert {named for edge in document["dependencies"] for named in [edge["ref"], *edge["dependsOn"]]} <= references
    sums = dict(reversed(line.split(maxsplit=1)) for line in (unpacked / "SHA256SUMS").read_text().splitlines())
    images = {part["name"]: part["hashes"][0]["content"] for part in document["components"] if part not in libraries}
    assert images == {name.removeprefix("images/"): sum_ for name, sum_ in sums.items() if name.startswith("images/")}
    assert document["metadata"]["component"]["hashes"][0]["content"] == sums["crucible-worker.pyz"]


def test_it_tells_nothing_of_its_maker(releases):
    with tarfile.open(releases[0]) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode in {0o644, 0o755}


@pytest.mark.engine
def test_a_host_without_a_network_needs_nothing_else(daemon, unpacked, tmp_path):
    """Checked, loaded and run where no packet can leave. The engine's socket is a file."""
    if shutil.which("unshare") is None:
        unavailable("there is no unshare")
    command = ["unshare", "--net", "bash", "-c", INSTALL, "bash", tmp_path.name]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(tmp_path), "DOCKER_HOST": daemon.url}
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["reason"], result["stdout"]) == ("exited", "42\n")


def test_a_key_that_is_not_there_is_one_line(tmp_path):
    command = ["./build.sh", "release"]
    environment = {"PATH": "/usr/bin:/bin", "SIGNING_KEY": f"{tmp_path}/none"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 64
    assert done.stderr == f"build.sh: SIGNING_KEY={tmp_path}/none cannot be read\n"
