"""Where a sandbox is counted: names and folders for each kind of host, and what is read there."""

import signal
import subprocess
from pathlib import Path

import pytest

from crucible_worker.engines import policy
from crucible_worker.engines.cgroups import Cgroup, Cgroups, Tree, refusal, tree_of
from crucible_worker.engines.counters import Counters, Meter, of_stats
from crucible_worker.model import Limits

SOCKET = "unix:///var/run/docker.sock"
V1, V2 = {"CgroupDriver": "cgroupfs", "CgroupVersion": "1"}, {"CgroupDriver": "cgroupfs", "CgroupVersion": "2"}
SYSTEMD = {"CgroupDriver": "systemd", "CgroupVersion": "2"}
NAME = "crucible-0123456789ab_fe"


def fill(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


# As Linux 6.18 writes them. Version 1 counts kills and refused forks in the sandbox's own cgroup only.
FILES_V1 = {
    f"cpuacct/{NAME}/cpuacct.usage": "1156407542\n",
    f"memory/{NAME}/memory.max_usage_in_bytes": "268697600\n",
    f"memory/{NAME}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    f"memory/{NAME}/c0ffee/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    f"pids/{NAME}/pids.events": "max 0\n",
    f"pids/{NAME}/pids.peak": "64\n",
    f"pids/{NAME}/c0ffee/pids.events": "max 3\n",
}


def files_v2(folder: str) -> dict[str, str]:
    return {
        f"{folder}/cpu.stat": "usage_usec 1156407\nuser_usec 286407\nsystem_usec 870000\n",
        f"{folder}/memory.peak": "268697600\n",
        f"{folder}/memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n",
        f"{folder}/pids.events": "max 3\n",
        f"{folder}/pids.peak": "64\n",
    }


SEEN = Counters(1156407542, 268697600, 2, 3, 64)


def test_version_1_is_read_from_a_hierarchy_for_each_controller(tmp_path):
    fill(tmp_path, FILES_V1)
    assert Cgroup(Tree(1, systemd=False, root=tmp_path), NAME).counters("c0ffee") == SEEN


@pytest.mark.parametrize(
    ("systemd", "folder"), [(False, NAME), (True, f"crucible.slice/{NAME}.slice")], ids=["cgroupfs", "systemd"]
)
def test_version_2_is_read_from_one_hierarchy(tmp_path, systemd, folder):
    fill(tmp_path, files_v2(folder))
    counted = Cgroup(Tree(2, systemd, tmp_path), NAME).counters("c0ffee")
    assert counted.merged(Counters(cpu_ns=SEEN.cpu_ns)) == SEEN
    assert counted.cpu_ns == 1156407000


@pytest.mark.parametrize(
    ("systemd", "folder"),
    [(False, "docker/c0ffee"), (True, "system.slice/docker-c0ffee.scope")],
    ids=["cgroupfs", "systemd"],
)
def test_without_a_cgroup_of_our_own_the_daemons_is_read(tmp_path, systemd, folder):
    fill(tmp_path, files_v2(folder))
    place = Cgroup(Tree(2, systemd, tmp_path))
    assert place.parent == ""
    assert place.counters("c0ffee").peak_memory_bytes == 268697600


def test_what_is_missing_or_odd_is_unknown(tmp_path):
    assert Cgroup(Tree(1, systemd=False, root=tmp_path), NAME).counters("x") == Counters()
    assert Cgroup().counters("x") == Counters()
    fill(tmp_path, {f"{NAME}/cpu.stat": "usage_usec many\n", f"{NAME}/memory.peak": "max\n", f"{NAME}/pids.events": ""})
    assert Cgroup(Tree(2, systemd=False, root=tmp_path), NAME).counters("x") == Counters()


@pytest.mark.parametrize("systemd", [False, True])
def test_policy_takes_our_cgroups_and_no_others(systemd):
    def asked(parent):
        return policy.container_config(
            image="i", runtime="runc", limits=Limits(), labels={}, boot="", cgroup_parent=parent
        )

    parent = Tree(1, systemd).parent(NAME)
    assert asked(parent)["HostConfig"]["CgroupParent"] == parent
    for other in ("/", "/docker", "system.slice", f"{parent}/..", f"/x/../{parent}", f"{parent}\n", "/crucible-"):
        with pytest.raises(ValueError, match="no cgroup of ours"):
            asked(other)


@pytest.mark.parametrize(
    ("info", "url"),
    [
        (V1, "tcp://10.0.0.1:2376"),
        (V2 | {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, SOCKET),
        ({"CgroupDriver": "none", "CgroupVersion": "1"}, SOCKET),
        (V2 | {"CgroupVersion": "3"}, SOCKET),
        ({}, SOCKET),
    ],
)
def test_cgroups_that_may_be_another_hosts_are_left_alone(info, url, tmp_path):
    assert tree_of(info, url, tmp_path) is None
    cgroups = Cgroups("worker-1", lambda: info, url, tmp_path)
    with cgroups.one() as place:
        assert (place.parent, place.counters("x")) == ("", Counters())
    assert cgroups.trouble
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_does_not_say_has_version_1():
    assert tree_of({"CgroupDriver": "cgroupfs"}, SOCKET, Path("/x")) == Tree(1, systemd=False, root=Path("/x"))
    assert tree_of(SYSTEMD, SOCKET, Path("/x")) == Tree(2, systemd=True, root=Path("/x"))


def test_a_worker_that_may_not_make_them_finds_out_once(tmp_path):
    asked = []
    missing = tmp_path / "not-mounted"
    cgroups = Cgroups("worker-1", lambda: asked.append(1) or V2, SOCKET, missing)
    for _ in range(2):
        with cgroups.one() as place:
            assert (place.parent, place.tree) == ("", Tree(2, systemd=False, root=missing))
    assert asked == [1]
    assert cgroups.trouble == "this process may not make cgroups: No such file or directory"
    cgroups.sweep()


def test_a_cgroup_is_there_for_its_sandbox_and_gone_afterwards(tmp_path):
    """Also when its sandbox failed; and what earlier lives have left goes with the sweep, but not what is in use."""
    for controller in ("memory", "cpuacct", "pids", "devices"):
        (tmp_path / controller).mkdir()
    cgroups = Cgroups("worker-1", lambda: V1, SOCKET, tmp_path)

    def there() -> set[str]:
        return {str(found.relative_to(tmp_path)) for found in tmp_path.glob("*/*")}

    def fail(place: Cgroup) -> None:
        raise RuntimeError(place.parent)

    with pytest.raises(RuntimeError), cgroups.one() as place:
        fail(place)
    assert there() == set()
    with cgroups.one() as place:
        folder = place.parent.lstrip("/")
        assert there() == {f"{controller}/{folder}" for controller in ("memory", "cpuacct", "pids")}
        (tmp_path / "devices" / folder).mkdir()  # the runtime makes it in all hierarchies
    assert there() == set()

    prefix = folder.partition("_")[0]
    with cgroups.one() as place:
        (tmp_path / "memory" / f"{prefix}_0a").mkdir()
        (tmp_path / "memory" / f"{prefix}_0a" / "left by a runtime").mkdir()
        fill(tmp_path, {f"memory/{prefix}_0b/in-use": ""})
        (tmp_path / "memory" / "crucible-ffffffffffff_0c").mkdir()
        cgroups.sweep()
        assert there() - {f"{c}{place.parent}" for c in ("memory", "cpuacct", "pids")} == {
            f"memory/{prefix}_0b",
            "memory/crucible-ffffffffffff_0c",
        }
    assert Cgroups("worker-2", lambda: V1, SOCKET, tmp_path)._prefix != cgroups._prefix


def test_systemd_is_asked_to_let_go_of_its_slice(tmp_path, monkeypatch):
    """Its folder alone would leave a unit in systemd's memory for every sandbox."""
    log = tmp_path / "log"
    program = tmp_path / "bin" / "systemctl"
    fill(tmp_path, {"bin/systemctl": f'#!/bin/sh\necho "$@" >> {log}\n'})
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    tree = Tree(2, systemd=True, root=tmp_path / "cgroup")
    assert refusal(tree) is None
    tree.make(NAME)
    (tree.root / tree.path(NAME)).mkdir(parents=True)
    assert tree.names("crucible-0123456789ab_") == {NAME}
    procs = tree.root / tree.path(NAME) / "cgroup.procs"
    procs.write_text("12345\n")
    assert tree.remove(NAME) is False
    assert not log.exists()
    procs.unlink()
    tree.remove(NAME)
    assert log.read_text() == f"stop {NAME}.slice\n"
    assert tree.names("crucible-") == set()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(tree) == "this process may not ask systemd for cgroups"
    with pytest.raises(FileNotFoundError):
        subprocess.run(["systemctl"])
    tree.remove(NAME)


def test_a_meter_reads_the_first_source_that_knows():
    worse = iter([Counters(cpu_ns=5_000_000), Counters(cpu_ns=1_005_000_000, peak_memory_bytes=7)])
    meter = Meter(Counters, lambda: next(worse))
    assert meter.cpu_ms is None
    meter.start()
    assert meter.misled
    meter.take()
    assert (meter.cpu_ms, meter.counters.peak_memory_bytes) == (1000.0, 7)


def test_a_meter_without_a_source_knows_nothing():
    meter = Meter(Counters)
    meter.start()
    assert meter.misled
    meter.take()
    assert (meter.cpu_ms, meter.counters) == (None, Counters())


def test_a_later_reading_that_lacks_some_takes_nothing_away():
    seen = iter([Counters(cpu_ns=1), Counters(5, 6, 1, 2, 3), Counters(cpu_ns=9, oom_kills=0)])
    meter = Meter(lambda: next(seen))
    meter.start()
    assert not meter.misled
    meter.take()
    meter.take()
    assert meter.counters == Counters(9, 6, 1, 2, 3)


def test_a_source_that_was_last_read_at_the_start_does_not_know_the_cost():
    meter = Meter(lambda: Counters(cpu_ns=5_000_000))
    meter.start()
    meter.take()
    assert meter.cpu_ms is None


def test_the_daemons_word_on_a_sandbox_that_has_ended_is_unknown():
    ended = {"cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}}
    assert of_stats(ended) == of_stats({}) == Counters()
    running = {"cpu_stats": {"cpu_usage": {"total_usage": 9}}, "memory_stats": {"max_usage": 8, "usage": 7}}
    assert of_stats(running) == Counters(cpu_ns=9, peak_memory_bytes=8)


@pytest.mark.engine
def test_what_outlives_its_sandbox_is_killed(daemon, engine_runtime):
    """As gVisor's processes do for a while where the start has failed."""
    engine_runtime("runc")
    cgroups = Cgroups("test-outliving", daemon.info, daemon.url)
    with cgroups.one() as place:
        assert place.tree is not None
        folders = [place.tree.hierarchy(controller) / place.tree.path(place.name) for controller in ("pids", "memory")]
        process = subprocess.Popen(["sleep", "1000"])
        for folder in folders:
            (folder / "below").mkdir(parents=True, exist_ok=True)  # systemd makes them with the sandbox
            (folder / "below" / "cgroup.procs").write_text(str(process.pid))
    assert process.wait(10) == -signal.SIGKILL
    assert [folder for folder in folders if folder.exists()] == []
