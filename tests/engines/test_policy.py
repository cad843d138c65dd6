"""The isolation of a sandbox: as files that a reviewer can read, as properties, and as what the daemon is held to.

After an intended change: `CRUCIBLE_WRITE_GOLDEN=1 python -m pytest tests/engines/test_policy.py`, then read the
difference in tests/golden/.
"""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.engines import policy
from crucible_worker.engines.runtimes import makes_loopback
from crucible_worker.model import Limits

GOLDEN = Path(__file__).parent.parent / "golden"
LABELS = {
    "crucible.boot": "0123456789abcdef",
    "crucible.deadline": "2026-01-31T12:00:30.000Z",
    "crucible.task": "eval-1",
    "crucible.worker": "worker-1",
}

sizes = st.integers(min_value=1, max_value=1 << 50)
counts = st.integers(min_value=1, max_value=1 << 30)
limits = st.builds(
    Limits,
    timeout_seconds=st.floats(min_value=0.001, max_value=1e6),
    memory_bytes=sizes,
    cpus=st.floats(min_value=1e-12, max_value=1024),
    processes=counts,
    open_files=counts,
    file_bytes=sizes,
    tmp_bytes=sizes,
)
configs = st.fixed_dictionaries(
    {
        "image": st.text(),
        "runtime": st.sampled_from(["runc", "runsc", "io.containerd.kata.v2"]) | st.text(),
        "limits": limits,
        "labels": st.dictionaries(st.text(), st.text()),
        "boot": st.text(),
        "shell": st.booleans(),
        "may_exec": st.booleans(),
        "own_loopback": st.booleans(),
    }
)


def config(runtime="runc", **changed):
    given_limits = changed.pop("limits", Limits())
    asked = {"image": "crucible-sandbox:python", "labels": LABELS, "boot": "<the text of boot.py>"} | changed
    return policy.container_config(runtime=runtime, limits=given_limits, **asked)


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_the_configuration_is_the_reviewed_one(runtime):
    path = GOLDEN / f"sandbox-{runtime}.json"
    made = json.dumps(config(runtime), indent=2) + "\n"
    if os.environ.get("CRUCIBLE_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8")
    assert made == path.read_text(encoding="utf-8")


def test_runtimes_differ_only_by_name_and_by_their_own_threads():
    plain, kernel = config("runc")["HostConfig"], config("runsc")["HostConfig"]
    assert {key for key in plain if plain[key] != kernel[key]} == {"Runtime", "PidsLimit"}


@given(configs)
def test_no_input_loosens_the_isolation(asked):
    made = policy.container_config(**asked)
    host = made["HostConfig"]
    assert made["User"] == "65534:65534"
    assert host["Privileged"] is False
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], [])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none"
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    assert not any(host[key] for key in ("PidMode", "UTSMode", "UsernsMode", "CgroupParent", "Sysctls"))
    assert not any(host[key] for key in ("Binds", "Mounts", "VolumesFrom", "GroupAdd", "PortBindings", "Links"))
    assert not any(host[key] for key in ("Devices", "DeviceRequests", "DeviceCgroupRules"))
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"


@pytest.mark.parametrize(
    ("runtime", "about", "does"),
    [
        ("runc", {"path": "runc"}, True),
        ("runsc", {"path": "runsc", "runtimeArgs": ["--debug", "--network=none"]}, True),
        ("runsc", {"path": "runsc", "runtimeArgs": ["--network=host"]}, False),
        ("runsc", {"path": "runsc", "runtimeArgs": None}, False),
        ("io.containerd.kata.v2", {}, False),
    ],
)
def test_which_runtimes_make_a_loopback_interface(runtime, about, does):
    assert makes_loopback({"Runtimes": {runtime: about}}, runtime) is does


def test_who_makes_the_loopback_is_no_matter_of_shape():
    assert policy.shape(config(own_loopback=True)) == policy.shape(config())


@given(configs)
def test_nothing_is_unlimited(asked):
    """Docker takes 0 and -1 for memory, CPU and processes, and a tmpfs of size 0, as "no limit"."""
    host = policy.container_config(**asked)["HostConfig"]
    assert host["Memory"] > 0
    assert host["MemorySwap"] == host["Memory"], "swap comes on top of memory"
    assert host["OomKillDisable"] is False
    assert host["NanoCpus"] > 0
    assert host["PidsLimit"] > 1
    assert 0 < host["ShmSize"] <= 16 << 20
    ulimits = {limit["Name"]: limit for limit in host["Ulimits"]}
    assert {ulimits[name]["Hard"] for name in ("core", "rtprio", "nice")} == {0}
    assert all(0 < ulimits[name]["Soft"] <= ulimits[name]["Hard"] for name in ("nofile", "fsize"))
    assert set(host["Tmpfs"]) == {"/sandbox", "/tmp"}
    for options in host["Tmpfs"].values():
        assert {"nosuid", "nodev", f"size={asked['limits'].tmp_bytes}"} <= set(options.split(","))


@given(configs)
def test_only_a_language_that_says_so_may_execute_what_it_writes_and_only_in_one_place(asked):
    places = policy.container_config(**asked)["HostConfig"]["Tmpfs"]
    assert "noexec" in places["/tmp"].split(",")
    assert ("exec" in places["/sandbox"].split(",")) == asked["may_exec"]
    assert ("noexec" in places["/sandbox"].split(",")) != asked["may_exec"]


@given(configs)
def test_a_tasks_words_reach_only_labels_and_image(asked):
    """Whatever a label says, the rest of the configuration is the same."""
    with_labels, without = policy.container_config(**asked), policy.container_config(**(asked | {"labels": {}}))
    assert with_labels.pop("Labels") == asked["labels"]
    without.pop("Labels")
    assert with_labels == without


@pytest.mark.parametrize(
    "careless",
    [
        {"memory_bytes": 0}, {"memory_bytes": -1}, {"cpus": 0}, {"cpus": -1}, {"processes": -1}, {"processes": 0},
        {"tmp_bytes": 0}, {"open_files": -1}, {"file_bytes": -1}, {"file_bytes": 0},
    ],
)  # fmt: skip
def test_a_limit_that_docker_would_take_for_none_is_refused(careless):
    with pytest.raises(ValueError, match=next(iter(careless))):
        config(limits=Limits(**careless))


# For each field of the request, what a daemon might make of it that is weaker, or simply gone.
WEAKER = {
    "Runtime": ["runsc", None],
    "Privileged": [True],
    "Init": [True],
    "CapDrop": [[], None, ["NET_RAW"]],
    "CapAdd": [["SYS_ADMIN"]],
    "SecurityOpt": [[], None, ["seccomp=unconfined"], ["no-new-privileges", "seccomp=unconfined"]],
    "ReadonlyRootfs": [False, None],
    "Tmpfs": [{}, None, {"/sandbox": "exec", "/tmp": "exec"}],
    "NetworkMode": ["bridge", "host", "default", "", None],
    "IpcMode": ["host", "shareable", ""],
    "CgroupnsMode": ["host", ""],
    "PidMode": ["host"],
    "UTSMode": ["host"],
    "UsernsMode": ["host"],
    "Memory": [0, None, 1 << 40],
    "MemorySwap": [-1, 0, None, 1 << 40],
    "OomKillDisable": [True],
    "OomScoreAdj": [0, -1000, None],
    "NanoCpus": [0, None],
    "PidsLimit": [0, -1, None],
    "ShmSize": [1 << 40, 0],
    "Ulimits": [[], None, [{"Name": "nofile", "Soft": 1 << 20, "Hard": 1 << 20}]],
    "LogConfig": [{"Type": "json-file", "Config": {}}, None],
    "RestartPolicy": [{"Name": "always", "MaximumRetryCount": 0}],
    "AutoRemove": [True],
    "Binds": [["/:/host"], ["/var/run/docker.sock:/docker.sock"]],
    "Mounts": [[{"Type": "bind", "Source": "/", "Target": "/host"}]],
    "VolumesFrom": [["another"]],
    "Devices": [[{"PathOnHost": "/dev/kvm"}]],
    "DeviceRequests": [[{"Driver": "nvidia", "Count": -1}]],
    "DeviceCgroupRules": [["a *:* rwm"]],
    "GroupAdd": [["0"]],
    "Links": [["another:db"]],
    "ExtraHosts": [["db:10.0.0.1"]],
    "PortBindings": [{"80/tcp": [{"HostPort": "80"}]}],
    "PublishAllPorts": [True],
    "Sysctls": [{"kernel.msgmax": "1"}],
    "CgroupParent": ["/"],
}


def inspected(requested):
    """What ContainerInspect says of a container that was made as asked for."""
    fields = {key: requested[key] for key in ("User", "Entrypoint", "Tty", "Env", "Image")}
    return {"HostConfig": copy.deepcopy(requested["HostConfig"]), "Config": copy.deepcopy(fields), "Mounts": []}


def test_the_table_below_weakens_every_field():
    assert set(WEAKER) == set(config()["HostConfig"])


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WEAKER.items() for value in values])
def test_each_weaker_field_is_reported_by_name(key, value):
    made = inspected(config())
    made["HostConfig"][key] = value
    found = policy.violations(config(), made)
    assert len(found) == 1
    assert found[0].startswith(f"{key} is ")


@pytest.mark.parametrize("name", ["nofile", "fsize", "core", "rtprio", "nice"])
def test_each_ulimit_is_held_even_where_one_of_that_name_follows(name):
    made = inspected(config())
    made["HostConfig"]["Ulimits"].append({"Name": name, "Soft": -1, "Hard": -1})
    assert policy.violations(config(), made)


@pytest.mark.parametrize(
    ("key", "value"),
    [("User", ""), ("User", "root"), ("User", None), ("Entrypoint", ["sh"]), ("Entrypoint", None), ("Tty", True)],
)
def test_another_user_or_program_is_reported(key, value):
    made = inspected(config())
    made["Config"][key] = value
    assert policy.violations(config(), made)


def test_unmasked_proc_and_mounted_volumes_are_reported():
    unmasked, writable, mounted = inspected(config()), inspected(config()), inspected(config())
    unmasked["HostConfig"]["MaskedPaths"] = []
    writable["HostConfig"]["ReadonlyPaths"] = []
    mounted["Mounts"] = [{"Destination": "/data"}]
    assert policy.violations(config(), unmasked) == ["MaskedPaths is emptied"]
    assert policy.violations(config(), writable) == ["ReadonlyPaths is emptied"]
    assert policy.violations(config(), mounted) == ["a volume is mounted at /data"]


@given(configs)
def test_what_was_asked_for_has_no_violations(asked):
    requested = policy.container_config(**asked)
    assert policy.violations(requested, inspected(requested)) == []


def test_a_daemons_own_ways_are_no_violations():
    """Engines leave out what is empty, add their default ulimits, and list the paths they mask."""
    made = inspected(config())
    host = made["HostConfig"]
    for key in ("CapAdd", "Binds", "Mounts", "Devices", "DeviceRequests", "GroupAdd", "Links", "Sysctls"):
        host[key] = None
    del host["UsernsMode"], host["Privileged"]
    host["Ulimits"].append({"Name": "nproc", "Soft": 4096, "Hard": 4096})
    host["MaskedPaths"], host["ReadonlyPaths"] = ["/proc/kcore"], ["/proc/sys"]
    host["RestartPolicy"] = {"Name": "", "MaximumRetryCount": 0}
    assert policy.violations(config(), made) == []


def test_an_answer_without_a_configuration_is_all_violations():
    assert len(policy.violations(config(), {})) > 10
