"""Whatever the settings and the tasks say: what is asked of a daemon is an isolated, limited sandbox, or nothing."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from crucible_worker import settings
from crucible_worker.engines.sandbox import Sandboxes
from crucible_worker.errors import ExitError
from crucible_worker.model import InvalidTaskError, Language, Task

NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "0.000000001",
        "1e-300",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "256m",
        "64",
        "1000000g",
        "1.5",
        "",
        " 7 ",
    ]
)
WORDS = st.sampled_from(
    [
        "host",
        "never",
        "missing",
        "docker",
        "runc",
        "runsc",
        "privileged",
        "a=runc",
        "x=--privileged",
        "/",
        "*",
        "a=b,c=d",
    ]
)
LANGUAGES = st.dictionaries(
    st.sampled_from(["python", "shell", "a b"]),
    st.fixed_dictionaries(
        {"image": st.sampled_from(["i", "../x", "-v /:/host", "i@sha256:0"])},
        optional={
            "command": st.lists(st.sampled_from(["sh", "--privileged", "sudo"]), max_size=3),
            "file": st.sampled_from(["main.sh", "../x", "/etc/passwd"]),
            "exec": st.booleans(),
            "preload": st.lists(st.sampled_from(["json", "os;x"]), max_size=2),
        },
    ),
    max_size=2,
).map(json.dumps)
SANE = {
    "memory": "64m", "cpus": "0.5", "processes": "8", "open_files": "64", "file_size": "1m", "tmp_size": "1m",
    "engines": "docker=runc,gvisor=runsc", "languages": '{"shell": {"image": "i", "command": ["sh"], "exec": true}}',
}  # fmt: skip
TEXT = st.deferred(lambda: NUMBERS | WORDS | LANGUAGES | st.text(max_size=20).filter(lambda text: "\0" not in text))


def values(name: str):
    return st.sampled_from([SANE[name], SANE[name], SANE[name]]) | TEXT if name in SANE else TEXT


GIVEN = st.sets(st.sampled_from([d.name for d in settings.describe() if not d.secret]), max_size=6).flatmap(
    lambda names: st.fixed_dictionaries({name: values(name) for name in names | SANE.keys()})
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
TASKS = st.fixed_dictionaries(
    {"eval_id": st.just("t") | JSON, "code": st.text(max_size=20) | JSON},
    optional={
        "timeout": st.sampled_from([1, 0.001, 1e308, math.inf, math.nan, -1, 0]) | JSON,
        "language": st.sampled_from(["python", "shell", "a b"]) | JSON,
        "engine": st.sampled_from(["docker", "gvisor"]) | JSON,
        "args": st.lists(st.sampled_from(["--privileged", "-v", "/:/host"]), max_size=2) | JSON,
        "files": JSON,
        "stdin": st.text(max_size=9) | JSON,
    },
).flatmap(
    lambda task: st.dictionaries(
        st.sampled_from(
            ["HostConfig", "privileged", "user", "image", "network", "memory", "limits", "Binds", "runtime"]
        ),
        JSON,
        max_size=3,
    ).map(lambda more: task | more)
)


def isolated(config: dict) -> None:
    """What no sandbox is without."""
    host = config["HostConfig"]
    assert config["User"] == "65534:65534"
    assert (host["Privileged"], host["CapDrop"], host["CapAdd"]) == (False, ["ALL"], [])
    assert (host["SecurityOpt"], host["ReadonlyRootfs"], host["Init"]) == (["no-new-privileges"], True, False)
    assert host["NetworkMode"] == "none"
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert not any(host[key] for key in ("PidMode", "UTSMode", "UsernsMode", "CgroupParent", "Sysctls", "GroupAdd"))
    assert not any(host[key] for key in ("Binds", "Mounts", "VolumesFrom", "Devices", "DeviceRequests", "Links"))
    assert not any(host[key] for key in ("DeviceCgroupRules", "PortBindings", "PublishAllPorts", "ExtraHosts"))
    assert 0 < host["Memory"] == host["MemorySwap"]
    assert host["NanoCpus"] >= 10_000_000
    assert host["PidsLimit"] > 1
    assert {limit["Name"] for limit in host["Ulimits"]} >= {"nofile", "fsize", "core", "rtprio", "nice"}
    assert all(limit["Soft"] == limit["Hard"] >= 0 for limit in host["Ulimits"])
    for options in host["Tmpfs"].values():
        words = options.split(",")
        assert {"nosuid", "nodev"} <= set(words)
        assert [word for word in words if word.startswith("size=") and int(word[5:]) > 0]
    # Its program is ours: neither settings nor tasks choose what the daemon starts.
    assert config["Entrypoint"][:2] in (["python3", "-c"], ["/bin/sh", "-c"])


def accepted(name: str, text: str) -> bool:
    try:
        settings.load({name: text}, {}, {})
    except ExitError:
        return False
    return True


@given(GIVEN, TASKS)
def test_no_setting_and_no_task_makes_a_looser_sandbox(text, document):
    loaded = settings.load({name: value for name, value in text.items() if accepted(name, value)}, {}, {}).settings
    try:
        task = Task.from_document(document)
    except InvalidTaskError:
        task = Task("t", "")
    limits = loaded.limits().for_task(task, loaded.timeout_max)
    assert 0 < limits.timeout_seconds <= loaded.timeout_max < math.inf
    language = loaded.languages.get(task.language) or Language("crucible-sandbox:python")
    for runtime in loaded.engines.values():
        made = Sandboxes(None, runtime, None)._config(language, limits, {"crucible.task": task.eval_id}, "")
        assert (made["HostConfig"]["Runtime"], made["Image"]) == (runtime, language.image)
        isolated(made)
