"""What a sandbox has used, compared with what the code in it counts of itself; on both runtimes."""

import json
import os
import uuid
from pathlib import Path

import pytest

from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.model import Reason

KNOWN_COST = """
import json, resource, time
block = bytearray(b"x") * (96 << 20)
while time.process_time() < 1.0:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([(used.ru_utime + used.ru_stime) * 1000, used.ru_maxrss * 1024]))
"""
CHILD_OUT_OF_MEMORY = (
    "import os\nif os.fork() == 0: x = b'x' * (1 << 30)\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"
)


def within(measured: float, true: float, share: float) -> bool:
    return abs(measured - true) <= share * true


def test_a_known_cost_is_found_again(sandbox):
    """Within a tenth. Inside gVisor there is no exact account to compare with.

    Its clock of CPU time goes on while the code waits for a CPU, and its own kernel is counted with the code it serves.
    """
    run = sandbox(KNOWN_COST)
    cpu_ms, peak = json.loads(run.stdout.data)
    assert within(run.cpu_ms, cpu_ms, 0.1 if sandbox.plain else 0.5), (run.cpu_ms, cpu_ms)
    assert within(run.peak_memory_bytes, peak, 0.1 if sandbox.plain else 0.25), run.peak_memory_bytes


def test_waiting_costs_nothing(sandbox):
    run = sandbox("import time\ntime.sleep(2)")
    assert 0 < run.cpu_ms < run.phases_ms["run"] / 2
    assert run.peak_memory_bytes > 1 << 20


def test_the_cost_of_what_was_ended_by_force_is_known(sandbox):
    """Past its time, flooding, or out of memory with all that was there: the numbers outlive the sandbox."""
    spin = sandbox("while True: pass", timeout_seconds=2.0)
    assert spin.verdict.reason is Reason.TIMEOUT
    assert 0 < spin.cpu_ms < 1.1 * (spin.phases_ms["run"] + spin.phases_ms["exit"])
    flood, hog = sandbox.all("while True: print('x' * 1000)", "x = b'x' * (1 << 30)", output_limit_bytes=1 << 20)
    assert flood.cpu_ms > 0
    assert within(hog.peak_memory_bytes, 256 << 20, 0.01)


def test_a_child_killed_for_memory_is_seen_from_outside(sandbox):
    run = sandbox(CHILD_OUT_OF_MEMORY + "\nraise SystemExit(3)")
    assert run.verdict.reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize("runtime", ["runc"], indirect=True)
def test_a_worker_that_may_not_make_cgroups_reads_the_daemons(sandbox):
    """As an ordinary user of the daemon's socket would."""
    sandbox.cgroups.one().__enter__()
    sandbox.cgroups.give_up("not allowed")
    run = sandbox(KNOWN_COST)
    cpu_ms, peak = json.loads(run.stdout.data)
    assert within(run.cpu_ms, cpu_ms, 0.1)
    assert within(run.peak_memory_bytes, peak, 0.1)
    assert sandbox("while True: pass", timeout_seconds=1.0).cpu_ms > 0


def test_a_worker_that_sees_no_cgroups_asks_the_daemon_or_says_that_it_does_not_know(sandbox, tmp_path):
    """Engines of this age answer too late to be asked again and again; then it is null, and never 0."""
    elsewhere = Cgroups(uuid.uuid4().hex, sandbox.daemon.info, sandbox.daemon.url, tmp_path)
    for controller in ("memory", "cpuacct", "pids"):
        (tmp_path / controller).mkdir()
    sandbox.use(sandbox.sandboxes(elsewhere))
    for _ in range(2):
        run = sandbox("print('done')")
        assert run.stdout.data == b"done\n"
        assert run.cpu_ms is None or run.cpu_ms > 0
    assert elsewhere.trouble == "the Docker Engine's cgroups are not those that this process sees"
    # It asked for one in the place that it took for the daemon's; the second time it knew better.
    left = list(Path("/sys/fs/cgroup").glob(f"*/{elsewhere._prefix}*"))
    assert len({found.name for found in left}) <= 1
    for found in left:
        for folder, _, _ in os.walk(found, topdown=False):
            Path(folder).rmdir()
