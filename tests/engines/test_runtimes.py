"""What names of OCI runtimes and a daemon's account of itself say about sandboxes; and how Podman's words are read."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.engines import podman, policy
from crucible_worker.engines.runtimes import is_gvisor, shares_kernel, unfit
from crucible_worker.model import Limits

DOCKER = {
    "Runtimes": {"runc": {}, "runsc": {}, "crun": {}},
    "DefaultRuntime": "runc",
    "SecurityOptions": ["name=seccomp,profile=default"],
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "CgroupVersion": "2",
}
PODMAN = DOCKER | {"BuildahVersion": "1.43.2", "DefaultRuntime": "crun", "Rootless": False}


@pytest.mark.parametrize(
    ("runtime", "gvisor", "shared"),
    [
        ("runc", False, True), ("crun", False, True), ("youki", False, True), ("io.containerd.runc.v2", False, True),
        ("my-own", False, True), ("runsc", True, False), ("runsc-ptrace", True, False), ("gvisor", True, False),
        ("io.containerd.runsc.v1", True, False), ("io.containerd.kata.v2", False, False), ("krun", False, False),
    ],
)  # fmt: skip
def test_whose_kernel_it_is(runtime, gvisor, shared):
    assert (is_gvisor(runtime), shares_kernel(runtime)) == (gvisor, shared)
    made = policy.container_config(image="i", runtime=runtime, limits=Limits(processes=10), labels={}, boot="")
    assert made["HostConfig"]["PidsLimit"] == (11 if shared else 10 + policy.RUNTIME_THREADS)


@pytest.mark.parametrize(
    ("info", "runtime", "said"),
    [
        (DOCKER, "runc", None),
        (DOCKER, "io.containerd.kata.v2", None),
        (DOCKER | {"SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"]}, "crun", None),
        (DOCKER, "youki", "the daemon has no runtime youki"),
        (DOCKER | {"MemoryLimit": False, "PidsLimit": False}, "runc", "the daemon cannot limit memory, processes"),
        (DOCKER | {"SwapLimit": False}, "runsc", "the daemon cannot limit swap"),
        (DOCKER | {"SecurityOptions": ["name=rootless"], "CgroupVersion": "1"}, "runsc", "a rootless engine"),
        (DOCKER | {"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "runc", "seccomp profile is unconfined"),
        (DOCKER | {"SecurityOptions": ["name=seccomp,profile=/etc/p.json"]}, "crun", "seccomp profile is /etc/p.json"),
        (DOCKER | {"SecurityOptions": []}, "runc", "seccomp profile is missing"),
        (DOCKER | {"SecurityOptions": None}, "runsc", None),
        (PODMAN, "crun", None),
        (PODMAN, "runsc", "Podman's socket runs everything on crun, its default, and nothing on runsc"),
        (PODMAN | {"Rootless": True}, "crun", None),
        (PODMAN | {"Rootless": True, "CgroupVersion": "1"}, "crun", "a rootless engine cannot limit anything"),
    ],
)
def test_a_daemon_that_cannot_hold_a_sandbox_is_told_in_a_sentence(info, runtime, said):
    found = unfit(info, runtime)
    assert found is said is None or (said in found and "\n" not in found)


def config(**changed):
    return policy.container_config(image="i", runtime="crun", limits=Limits(**changed), labels={}, boot="")


def as_podman_tells(asked):
    """A sandbox as Podman 5.8 shows it, on its compatible socket and in its own words."""
    body = podman.asked(asked)
    host = copy.deepcopy(body["HostConfig"])
    host |= {
        "Runtime": "oci", "CapDrop": ["CHOWN", "KILL"], "CapAdd": [], "PidMode": "private", "UTSMode": "private",
        "Tmpfs": {path: f"{text},rprivate,tmpcopyup" for path, text in host["Tmpfs"].items()},
        "Ulimits": [{**limit, "Name": f"RLIMIT_{limit['Name'].upper()}"} for limit in host["Ulimits"]],
    }  # fmt: skip
    del host["Init"], host["Sysctls"]
    shown = {"Config": {key: body[key] for key in ("User", "Entrypoint", "Cmd", "Tty")}, "HostConfig": host}
    return shown, {"OCIRuntime": "crun", "EffectiveCaps": None, "BoundingCaps": None}


@given(st.integers(min_value=1, max_value=1 << 50), st.booleans())
def test_podmans_words_are_the_same_sandbox(size, may_exec):
    asked = policy.container_config(
        image="i", runtime="crun", limits=Limits(tmp_bytes=size), labels={}, boot="", may_exec=may_exec
    )
    assert policy.violations(asked, podman.told(*as_podman_tells(asked))) == []


def test_one_that_named_no_cgroup_is_in_systemds_own():
    shown, native = as_podman_tells(config())
    shown["HostConfig"]["CgroupParent"] = "user.slice"
    assert policy.violations(config(), podman.told(shown, native)) == []
    named = policy.container_config(
        image="i", runtime="crun", limits=Limits(), labels={}, boot="", cgroup_parent="/crucible-ab_cd"
    )
    assert "CgroupParent is ''" in policy.violations(named, podman.told(shown, native))[0]


@pytest.mark.parametrize(
    ("controllers", "cannot"),
    [
        (["cpu", "io", "memory", "pids"], None),
        (["memory", "pids"], "the daemon cannot limit CPU time"),
        (["pids"], "the daemon cannot limit memory, swap, CPU time"),
        ([], "the daemon cannot limit memory, swap, processes, CPU time"),
    ],
)
def test_podman_limits_what_it_has_controllers_for(controllers, cannot):
    """With cgroup version 2, whatever it says of limits on its compatible socket."""
    shown = {
        "BuildahVersion": "1", "CgroupVersion": "2", "Rootless": True, "MemoryLimit": True, "SwapLimit": False,
        "CpuCfsQuota": False, "PidsLimit": True, "DefaultRuntime": "crun", "Runtimes": {"crun": {}},
        "SecurityOptions": ["name=seccomp,profile=default"],
    }  # fmt: skip
    found = unfit(podman.set_up(shown, {"host": {"cgroupControllers": controllers}}), "crun")
    assert found is cannot is None or found.startswith(cannot)
    version1 = shown | {"CgroupVersion": "1"}
    assert podman.set_up(version1, {"host": {"cgroupControllers": controllers}}) == version1


def weaker(**host):
    shown, native = as_podman_tells(config())
    shown["HostConfig"] |= host
    return policy.violations(config(), podman.told(shown, native))


def test_what_podman_makes_weaker_is_still_found():
    shown, native = as_podman_tells(config())
    assert "Runtime is 'runsc'" in policy.violations(config(), podman.told(shown, native | {"OCIRuntime": "runsc"}))[0]
    for kind in ("EffectiveCaps", "BoundingCaps"):
        assert "CapDrop" in policy.violations(config(), podman.told(shown, native | {kind: ["CAP_KILL"]}))[0]
    assert "PidMode is 'host'" in weaker(PidMode="host")[0]
    assert "Memory is 0" in weaker(Memory=0)[0]
    tmpfs = shown["HostConfig"]["Tmpfs"]
    assert "Tmpfs" in weaker(Tmpfs={path: text for path, text in tmpfs.items() if path != "/run"})[0]
    assert "Tmpfs" in weaker(Tmpfs=tmpfs | {"/var/tmp": "rw,rprivate,tmpcopyup"})[0]
    assert "Tmpfs" in weaker(Tmpfs=tmpfs | {"/srv": "rw"})[0]
    assert "Ulimits" in weaker(Ulimits=[])[0]


def test_only_podman_is_asked_in_its_words():
    assert podman.is_podman({"Components": [{"Name": "Podman Engine"}, {"Name": "Conmon"}]})
    assert not podman.is_podman({"Components": [{"Name": "Engine"}]})
    assert not podman.is_podman({})
