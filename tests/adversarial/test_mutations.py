"""A policy without one of its controls must show: the probe that finds nothing open finds that."""

import copy
from collections.abc import Callable

import pytest

from crucible_worker.engines import policy
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.prepared import Maker
from crucible_worker.model import Limits

HOST = "HostConfig"


def without(key: str, value: object, **more: object) -> Callable[[dict], None]:
    """A HostConfig with other values."""

    def mutate(config: dict) -> None:
        config[HOST] |= {key: value} | more

    return mutate


def without_ulimit(name: str, much: int) -> Callable[[dict], None]:
    def mutate(config: dict) -> None:
        config[HOST]["Ulimits"] = [limit for limit in config[HOST]["Ulimits"] if limit["Name"] != name]
        config[HOST]["Ulimits"].append({"Name": name, "Soft": much, "Hard": much})

    return mutate


def without_option(*options: str) -> Callable[[dict], None]:
    """Both tmpfs without these mount options."""

    def mutate(config: dict) -> None:
        for path, text in config[HOST]["Tmpfs"].items():
            kept = [option for option in text.split(",") if option.partition("=")[0] not in options]
            config[HOST]["Tmpfs"][path] = ",".join([*kept, *(o[2:] for o in options if o.startswith("no"))])

    return mutate


def as_root(config: dict) -> None:
    config["User"] = "0:0"
    config[HOST]["Tmpfs"] = dict.fromkeys(config[HOST]["Tmpfs"], "size=8m,noexec,mode=1777")


def with_the_hosts_name(config: dict) -> None:
    config[HOST]["UTSMode"] = "host"
    del config["Hostname"]


def with_the_workers_environment(config: dict) -> None:
    config["Env"] = [*config["Env"], "API_KEY=1"]


SOCKET = "/var/run/docker.sock"
# What is taken away, and the names under which the probe must report it.
MUTATIONS = {
    "network": (without("NetworkMode", "host"), "net namespace"),
    "user": (as_root, "user"),
    "capabilities dropped": (without("CapDrop", []), "capabilities"),
    "capabilities added": (without("CapAdd", ["SYS_ADMIN"]), "capabilities"),
    "privileged": (without("Privileged", True), "devices"),
    "no-new-privileges": (without("SecurityOpt", []), "no new privileges"),
    "read-only root": (without("ReadonlyRootfs", False), "read-only root"),
    "memory": (without("Memory", 0, MemorySwap=0), "much memory"),
    "swap": (without("MemorySwap", 1 << 30), "swap"),
    "OOM killer": (without("OomKillDisable", True), "oom killer"),
    "OOM score": (without("OomScoreAdj", 0), "oom score"),
    "CPU": (without("NanoCpus", 0), "cpu"),
    "processes": (without("PidsLimit", 0), "many processes"),
    "size of tmpfs": (without_option("size"), "fill /tmp"),
    "noexec": (without_option("noexec"), "execute in /tmp"),
    "nosuid": (without_option("nosuid"), "tmpfs"),
    "nodev": (without_option("nodev"), "tmpfs"),
    "size of shared memory": (without("ShmSize", 1 << 30), "fill /dev/shm"),
    "open files": (without_ulimit("nofile", 4096), "limit NOFILE"),
    "size of files": (without_ulimit("fsize", 1 << 40), "limit FSIZE"),
    "core dumps": (without_ulimit("core", 1 << 40), "limit CORE"),
    "IPC": (without("IpcMode", "host", ShmSize=0), "ipc namespace"),
    "cgroups": (without("CgroupnsMode", "host"), "cgroup namespace"),
    "processes of the host": (without("PidMode", "host"), "pid namespace"),
    "host name": (with_the_hosts_name, "host name"),
    "seccomp": (without("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]), "seccomp"),
    "log": (without("LogConfig", {"Type": "json-file", "Config": {}}), "log"),
    "binds": (without("Binds", [f"{SOCKET}:{SOCKET}"]), "nothing mounted"),
    "devices": (
        without("Devices", [{"PathOnHost": "/dev/kmsg", "PathInContainer": "/dev/kmsg", "CgroupPermissions": "rwm"}]),
        "devices",
    ),
    "groups": (without("GroupAdd", ["0"]), "user"),
    "environment": (with_the_workers_environment, "environment"),
}


def weakens(daemon: Daemon, mutate: Callable[[dict], None]) -> bool:
    """Whether this host has the control at all: with cgroup version 2 nobody can switch the OOM killer off."""
    return mutate is not MUTATIONS["OOM killer"][0] or bool(daemon.info()["OomKillDisable"])


# Seen in the daemon's answer alone, or of no effect while no other control is gone.
HELD_BY_COMPARISON = {
    "AutoRemove", "CgroupParent", "DeviceCgroupRules", "DeviceRequests", "ExtraHosts", "Init", "Links", "Mounts",
    "PortBindings", "PublishAllPorts", "RestartPolicy", "Runtime", "Sysctls", "UsernsMode", "VolumesFrom",
}  # fmt: skip


def test_each_control_of_the_policy_is_taken_away():
    """Every field of the policy is either mutated here, or one whose removal only the comparison can see."""
    original = policy.container_config(image="i", runtime="runc", limits=Limits(), labels={}, boot="")
    mutated = set()
    for mutate, _ in MUTATIONS.values():
        changed = copy.deepcopy(original)
        mutate(changed)
        mutated |= {key for key in changed[HOST] if changed[HOST].get(key) != original[HOST].get(key)}
    assert mutated | HELD_BY_COMPARISON == set(original[HOST])
    assert not mutated & HELD_BY_COMPARISON


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
@pytest.mark.parametrize(("mutate", "control"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_weaker_policy_shows(sandbox, host, daemon, monkeypatch, mutate, control):
    original = policy.container_config

    def weaker(**asked):
        config = original(**asked)
        mutate(config)
        return config

    monkeypatch.setattr(policy, "container_config", weaker)
    monkeypatch.setattr(Maker, "_verify", lambda *_: "")
    assert (control in host.weaknesses(sandbox)) == weakens(daemon, mutate)
