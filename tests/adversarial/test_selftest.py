"""`doctor --sandbox`: every control holds on this host, and each one's absence shows."""

import json
import socket
import subprocess
import sys
from functools import partial

import pytest
from engine_under_test import DOCKER_HOST, PLAIN_RUNTIME
from test_mutations import MUTATIONS, weakens
from worker_process import clean_environment

from crucible_worker.doctor import outside, selftest
from crucible_worker.doctor.checks import Status
from crucible_worker.doctor.controls import LOOKS
from crucible_worker.engines import policy
from crucible_worker.engines.prepared import Maker
from crucible_worker.model import Language, Limits

# The control that has to fail where the adversarial suite's mutation of the same name is made.
SHOWN_BY = {
    "network": "no network",
    "user": "user",
    "capabilities dropped": "capabilities",
    "capabilities added": "capabilities",
    "privileged": "no devices",
    "no-new-privileges": "no-new-privileges",
    "read-only root": "read-only root",
    "memory": "memory",
    "swap": "swap",
    "OOM killer": "memory",
    "OOM score": "supervisor",
    "CPU": "cpu",
    "processes": "processes",
    "size of tmpfs": "tmpfs size",
    "noexec": "tmpfs noexec",
    "nosuid": "tmpfs nosuid, nodev",
    "nodev": "tmpfs nosuid, nodev",
    "size of shared memory": "tmpfs size",
    "open files": "files and core dumps",
    "size of files": "files and core dumps",
    "core dumps": "files and core dumps",
    "IPC": "namespaces",
    "cgroups": "namespaces",
    "processes of the host": "namespaces",
    "host name": "namespaces",
    "seccomp": "seccomp",
    "log": "no log on the host",
    "binds": "no mounts",
    "devices": "no devices",
    "groups": "user",
    "environment": "environment",
}


@pytest.fixture
def examine(sandbox):
    """Test a runtime; what failed, with what was found."""

    def failures() -> dict[str, str]:
        controls = selftest.examine(sandbox.daemon, sandbox.runtime, Language(sandbox.image), Limits(), sandbox.labels)
        return {control.name: control.found for control in controls if control.status is Status.FAIL}

    return failures


def test_every_control_holds(examine):
    assert examine() == {}


def test_every_mutation_is_one_of_the_adversarial_suite():
    assert set(SHOWN_BY) == set(MUTATIONS)
    assert set(SHOWN_BY.values()) <= set(LOOKS)


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
@pytest.mark.parametrize("mutation", SHOWN_BY)
def test_a_weaker_sandbox_shows(examine, daemon, monkeypatch, mutation):
    mutate, _ = MUTATIONS[mutation]
    original = policy.container_config

    def weaker(**asked):
        config = original(**asked)
        mutate(config)
        return config

    monkeypatch.setattr(policy, "container_config", weaker)
    monkeypatch.setattr(Maker, "_verify", lambda *_: "")
    assert (SHOWN_BY[mutation] in examine()) == weakens(daemon, mutate)


def test_where_the_host_shows_nothing_the_inside_is_judged_alone(sandbox, monkeypatch, tmp_path):
    """A worker in a container, or an engine elsewhere."""
    monkeypatch.setattr(outside, "look", partial(outside.look, proc=tmp_path))
    controls = selftest.examine(sandbox.daemon, sandbox.runtime, Language(sandbox.image), Limits(), sandbox.labels)
    how = {control.name: control.how for control in controls if control.status is Status.PASS}
    assert [control for control in controls if control.status is Status.FAIL] == []
    assert (how["user"], how["namespaces"], how["no-new-privileges"]) == ("inside", "inside", "inside")


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_an_engine_that_does_not_do_as_asked_shows(examine, monkeypatch):
    """The comparison of every task is the self-test's first control."""
    monkeypatch.setattr(policy, "violations", lambda *_: ["Privileged is True instead of False"])
    assert examine() == {
        "a sandbox as asked for": "the daemon weakened the sandbox: Privileged is True instead of False"
    }


@pytest.fixture
def environment(sandbox_image):
    """Of a worker that is to use the engine under test."""
    return clean_environment() | {
        "DOCKER_HOST": DOCKER_HOST,
        "CRUCIBLE_ENGINES": f"docker={PLAIN_RUNTIME},gvisor=runsc",
        "CRUCIBLE_LANGUAGES": f"python={sandbox_image}",
        "API_KEY": "k" * 20,
    }


@pytest.mark.engine
def test_the_command_shows_a_table_and_says_how_each_was_checked(environment, engine_runtime):
    engine_runtime("runc")
    engine_runtime("runsc")
    command = [sys.executable, "-m", "crucible_worker", "doctor", "--sandbox"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stderr) == (0, "")
    header, *rows = told.stdout.splitlines()
    assert header.split() == ["CONTROL", "DOCKER", "GVISOR"]
    assert [row[:24].strip() for row in rows[:-2]] == ["a sandbox as asked for", *LOOKS]
    assert rows[-1] == "Every control holds."
    listed = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=120)
    engines = json.loads(listed.stdout)["engines"]
    assert {control["how"] for control in engines["docker"]} == {"inside", "outside", "both"}
    assert {control["status"] for controls in engines.values() for control in controls} == {"pass"}


@pytest.mark.engine
def test_an_engine_that_cannot_be_had_does_not_hold(environment, plain_runtime):
    """What is configured is what is to be trusted."""
    engines = f"docker={plain_runtime},other=none-such"
    command = [sys.executable, "-m", "crucible_worker", "doctor", "--sandbox", "--engines", engines]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stderr) == (1, "")
    assert "\nFAIL other, a sandbox as asked for: " in told.stdout
    assert told.stdout.endswith("\n1 do not hold.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["--docker-host", "unix:///nonexistent/docker.sock"],
            69,
            "No such file or directory. 'doctor' says what to do.",
        ),
        (["--languages", '{"sh": {"image": "i", "command": ["sh"], "file": "f"}}'], 64, "add a python image"),
    ],
)
def test_without_what_it_needs_it_is_one_line(arguments, code, says):
    command = [sys.executable, "-m", "crucible_worker", "doctor", "--sandbox", *arguments]
    told = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (code, "", 1)
    assert says in told.stderr


def test_an_engine_that_hangs_does_not_hang_the_self_test(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "d.sock"))
        listener.listen()
        command = [
            sys.executable,
            "-m",
            "crucible_worker",
            "doctor",
            "--sandbox",
            f"--docker-host=unix://{tmp_path}/d.sock",
        ]
        told = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert told.returncode == 69
    assert "does not answer" in told.stderr


def host_files(root, *, version: int) -> dict:
    """A process 7 and its cgroup, as Linux shows them; the arguments by which `look` finds them."""
    files = {
        "proc/7/status": "Name:\tpython3\nUid:\t65534\t65534\nNoNewPrivs:\t1\n",
        "proc/7/limits": f"{'Limit':<26}Soft Limit Hard Limit Units\n{'Max open files':<26}256 512 files\n",
        "proc/7/mountinfo": "124 75 0:67 / / ro,relatime master:5 - overlay overlay rw\n",
    }
    if version == 2:
        files["proc/7/cgroup"] = "0::/docker/abc\n"
        names = {"memory.max": "100663296", "memory.swap.max": "0", "cpu.max": "50000 100000", "pids.max": "33"}
        files |= {f"cgroup/docker/abc/{name}": text for name, text in names.items()}
    else:
        files["proc/7/cgroup"] = "5:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:pids:/docker/abc\n"
        files |= {
            "cgroup/memory/docker/abc/memory.limit_in_bytes": "100663296",
            "cgroup/pids/docker/abc/pids.max": "33",
        }
        files |= {
            "cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000",
            "cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
        }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for place in ("7", "self"):
        (root / "proc" / place / "ns").mkdir(parents=True)
        for name in outside.NAMESPACES:
            (root / "proc" / place / "ns" / name).symlink_to(f"{name}:[{place if name != 'user' else 1}]")
    return {"proc": root / "proc", "cgroups": root / "cgroup"}


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions_of_cgroups_are_read(tmp_path, version):
    seen = outside.look({"Id": "abc", "State": {"Pid": 7}}, local=True, **host_files(tmp_path, version=version))
    swap = {"swap": "0"} if version == 2 else {}
    cpu = {"cpu": "50000 100000"} if version == 2 else {"cpu": "50000", "period": "100000"}
    assert (seen.version, seen.cgroup) == (version, {"memory": "100663296", "processes": "33"} | swap | cpu)
    assert seen.limits == {"Max open files": ("256", "512")}
    assert seen.mounts == {"/": {"ro", "relatime"}}
    assert seen.status["Uid"].split() == ["65534", "65534"]
    assert seen.own == {name: name != "user" for name in outside.NAMESPACES}


@pytest.mark.parametrize(("container", "local"), [("abc", False), ("def", True)])
def test_a_process_of_another_host_is_not_taken_for_the_sandbox(tmp_path, container, local):
    """An engine elsewhere, or a worker in a container: the number belongs to somebody else."""
    places = host_files(tmp_path, version=2)
    seen = outside.look({"Id": container, "State": {"Pid": 7}}, local=local, **places)
    assert (seen.pid, seen.status, seen.cgroup, seen.own) == (None, None, None, None)
