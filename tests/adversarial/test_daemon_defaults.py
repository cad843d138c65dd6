"""Daemons whose defaults loosen or change what containers get: a sandbox is as ever, or there is none.

They are real ones of our own, with nothing shared. What a daemon's account of itself rules out is in
`engines/test_runtimes.py`.
"""

import json
import uuid
from pathlib import Path

import pytest
from private_docker import private_docker
from sandbox_bench import Bench

from crucible_worker.engines import policy
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import Fleet
from crucible_worker.engines.runtimes import unfit
from crucible_worker.model import Language, Limits

pytestmark = pytest.mark.engine
PYTHON = "crucible-sandbox:python"
MUCH = 1 << 19
LOOSE = {
    "default-ulimits": {
        name: {"Name": name, "Soft": much, "Hard": much}
        for name, much in {"nofile": MUCH, "core": -1, "fsize": -1, "rtprio": 99, "nice": 40}.items()
    },
    "default-shm-size": "1g",
    "default-cgroupns-mode": "host",
    "default-ipc-mode": "shareable",
    "init": True,
    "no-new-privileges": False,
    "log-driver": "json-file",
    "cgroup-parent": "/crucible-elsewhere",
    "exec-opts": ["native.cgroupdriver=cgroupfs"],  # systemd's takes slices only
    "dns": ["192.0.2.1"],
}


def found_open(docker, host) -> dict:
    """What the probe of tests/adversarial finds in a sandbox of this daemon, and what is wrong with the daemon."""
    daemon = Daemon(docker.host)
    try:
        bench = Bench(daemon, "runc", PYTHON)
        assert unfit(daemon.info(), "runc") is None
        found = host.weaknesses(bench)
        assert bench.left() == []
        return found
    finally:
        daemon.close()


def test_looser_defaults_change_nothing_and_another_seccomp_profile_is_refused(host, tmp_path):
    with private_docker(LOOSE) as docker:
        assert found_open(docker, host) == {}
        docker.stop()
        profile = tmp_path / "profile.json"
        profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
        docker.defaults = {"seccomp-profile": str(profile)}
        docker.start()
        daemon = Daemon(docker.host)
        labels = {"crucible.worker": f"test-{uuid.uuid4().hex}", "crucible.boot": "b"}
        fleet = Fleet(daemon, engines={"docker": "runc"}, languages={"python": Language(PYTHON)}, fallback=False,
                      limits=Limits(), labels=labels)  # fmt: skip
        fleet.probe_all()
        said = f"the daemon's seccomp profile is {profile}, and not its own default"
        assert (fleet.available(), fleet.states()["docker"].detail) == (False, said)
        assert not fleet.probe("docker")
        assert fleet.close(60)
        daemon.close()


def test_a_daemon_that_maps_users_runs_the_same_sandboxes(host, tmp_path):
    """Its root, and nobody, are others on this host; what it may map to them is in a mount namespace of its own."""
    files = {path: tmp_path / Path(path).name for path in ("/etc/subuid", "/etc/subgid")}
    for file in files.values():
        file.write_text("nobody:300000:65536\n")
    mounts = "".join(f"[ -e {path} ] || : >{path}; mount --bind {file} {path}; " for path, file in files.items())
    within = ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh"]
    with private_docker({"userns-remap": "nobody:nogroup"}, within) as docker:
        assert found_open(docker, host) == {}


def test_each_of_these_defaults_is_stated_or_compared():
    """A new default of dockerd that is put into LOOSE needs a field of the policy that answers it."""
    stated = policy.container_config(image="i", runtime="runc", limits=Limits(), labels={}, boot="")["HostConfig"]
    names = {limit["Name"] for limit in stated["Ulimits"]}
    assert names >= set(LOOSE["default-ulimits"])
    assert {"ShmSize", "CgroupnsMode", "IpcMode", "Init", "SecurityOpt", "LogConfig", "NetworkMode"} <= set(stated)
