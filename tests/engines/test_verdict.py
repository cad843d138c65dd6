"""From evidence to verdict: a row for each way a run can end, and what no evidence may bring about."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from crucible_worker.engines.counters import Counters
from crucible_worker.engines.output import Trailer
from crucible_worker.engines.verdict import Evidence, judge
from crucible_worker.errors import TaskError
from crucible_worker.model import Limits, Reason, Status

LIMITS = Limits(timeout_seconds=2.5, memory_bytes=1000, processes=7, output_limit_bytes=500)
COMPLETED, FAILED, TIMEOUT, ERROR = Status.COMPLETED, Status.FAILED, Status.TIMEOUT, Status.ERROR


def seen(runtime="runc", *, exit_code, started=True, **more):
    return Evidence(runtime=runtime, limits=LIMITS, started=started, exit_code=exit_code, **more)


def exited(code):
    return Trailer(exit_code=code)


def killed(signal):
    return Trailer(signal=signal)


# evidence, status, reason, exit code, signal, what the error says
VERDICTS = {
    "exit 0": (seen(exit_code=0, trailer=exited(0)), COMPLETED, Reason.EXITED, 0, None, None),
    "exit 1": (seen(exit_code=1, trailer=exited(1)), FAILED, Reason.EXITED_NONZERO, 1, None, "exit code 1"),
    "exit 137, which is no signal": (
        seen(exit_code=137, trailer=exited(137)), FAILED, Reason.EXITED_NONZERO, 137, None, "exit code 137"),
    "exit 255": (seen(exit_code=255, trailer=exited(255)), FAILED, Reason.EXITED_NONZERO, 255, None, "exit code 255"),
    "killed by itself": (
        seen(exit_code=137, trailer=killed(9)), FAILED, Reason.SIGNALED, None, 9, "killed by signal 9 (SIGKILL)"),
    "segmentation fault on gVisor": (
        seen("runsc", exit_code=139, trailer=killed(11)), FAILED, Reason.SIGNALED, None, 11,
        "killed by signal 11 (SIGSEGV)"),
    "real-time signal": (
        seen(exit_code=128 + 40, trailer=killed(40)), FAILED, Reason.SIGNALED, None, 40,
        "killed by signal 40 (real-time)"),
    "a signal without a name": (
        seen(exit_code=128 + 32, trailer=killed(32)), FAILED, Reason.SIGNALED, None, 32,
        "killed by signal 32 (unknown)"),
    "timeout": (
        seen(exit_code=137, timed_out=True), TIMEOUT, Reason.TIMEOUT, None, None, "still running after 2.5 seconds"),
    "timeout of a sandbox that cannot be killed": (
        seen(exit_code=None, timed_out=True), TIMEOUT, Reason.TIMEOUT, None, None, "still running after 2.5 seconds"),
    "timeout while out of memory": (
        seen(exit_code=137, timed_out=True, oom_killed=True), TIMEOUT, Reason.TIMEOUT, None, None,
        "still running after 2.5 seconds"),
    "flood": (
        seen(exit_code=137, flooded=True), FAILED, Reason.OUTPUT_LIMIT, None, None, "output went past 500 bytes"),
    "flood at the deadline": (
        seen(exit_code=137, flooded=True, timed_out=True), FAILED, Reason.OUTPUT_LIMIT, None, None,
        "output went past 500 bytes"),
    "cancelled": (
        seen(exit_code=137, cancelled=True), ERROR, Reason.CANCELLED, None, None, "cancelled while it ran"),
    "cancelled before it started": (
        seen(exit_code=137, started=False, cancelled=True), ERROR, Reason.CANCELLED, None, None,
        "cancelled while it ran"),
    "cancelled at the deadline": (
        seen(exit_code=137, timed_out=True, cancelled=True), ERROR, Reason.CANCELLED, None, None,
        "cancelled while it ran"),
    "out of memory": (
        seen(exit_code=137, oom_killed=True, trailer=killed(9)), FAILED, Reason.OUT_OF_MEMORY, None, None,
        "needed more than 1000 bytes of memory"),
    "a child killed for memory, as the cgroup counts it": (
        seen(exit_code=3, counters=Counters(oom_kills=1), trailer=exited(3)), FAILED, Reason.OUT_OF_MEMORY, 3, None,
        "needed more than 1000 bytes of memory"),
    "a child killed for memory, and no harm done": (
        seen(exit_code=0, counters=Counters(oom_kills=1), trailer=exited(0)), COMPLETED, Reason.EXITED, 0, None, None),
    "much memory, and no kill": (
        seen(exit_code=3, counters=Counters(oom_kills=0, peak_memory_bytes=1000), trailer=exited(3)), FAILED,
        Reason.EXITED_NONZERO, 3, None, "exit code 3"),
    "out of memory with the supervisor": (
        seen(exit_code=137, oom_killed=True), FAILED, Reason.OUT_OF_MEMORY, None, None,
        "needed more than 1000 bytes of memory"),
    "out of memory in a child, and no way to go on": (
        seen(exit_code=3, oom_killed=True, trailer=exited(3)), FAILED, Reason.OUT_OF_MEMORY, 3, None,
        "needed more than 1000 bytes of memory"),
    "out of memory in a child, which was to be expected": (
        seen(exit_code=0, oom_killed=True, trailer=exited(0)), COMPLETED, Reason.EXITED, 0, None, None),
    "out of memory with gVisor's kernel": (
        seen("runsc", exit_code=128), FAILED, Reason.OUT_OF_MEMORY, None, None,
        "needed more than 1000 bytes of memory"),
    "exit 128 on gVisor": (
        seen("runsc", exit_code=128, trailer=exited(128)), FAILED, Reason.EXITED_NONZERO, 128, None, "exit code 128"),
    "gVisor's kernel at its limit": (
        seen("runsc-own", exit_code=2, counters=Counters(peak_processes=7 + 256)), FAILED, Reason.PROCESS_LIMIT, None,
        None, "the code needed more than its limit of 7 processes"),
    "out of threads for gVisor's kernel": (
        seen("runsc", exit_code=2), FAILED, Reason.PROCESS_LIMIT, None, None,
        "the code needed more than its limit of 7 processes"),
    "processes refused, and no way to go on": (
        seen(exit_code=3, counters=Counters(forks_refused=1), trailer=exited(3)), FAILED, Reason.PROCESS_LIMIT, 3, None,
        "the code needed more than its limit of 7 processes"),
    "processes refused, which was to be expected": (
        seen(exit_code=0, counters=Counters(forks_refused=9), trailer=exited(0)), COMPLETED, Reason.EXITED, 0, None,
        None),
    "processes refused, and killed by itself": (
        seen(exit_code=137, counters=Counters(forks_refused=9), trailer=killed(9)), FAILED, Reason.SIGNALED, None, 9,
        "killed by signal 9 (SIGKILL)"),
    "threads refused to gVisor's kernel, whatever it ends with": (
        seen("runsc", exit_code=137, counters=Counters(forks_refused=1)), FAILED, Reason.PROCESS_LIMIT, None, None,
        "the code needed more than its limit of 7 processes"),
    "exit 2 on gVisor": (
        seen("runsc", exit_code=2, trailer=exited(2)), FAILED, Reason.EXITED_NONZERO, 2, None, "exit code 2"),
    "supervisor killed by the code, on gVisor": (
        seen("runsc", exit_code=137), FAILED, Reason.SIGNALED, None, 9, "killed by signal 9 (SIGKILL)"),
}  # fmt: skip

NO_VERDICT = {
    "killed from outside": (
        seen(exit_code=137), Reason.ENGINE_ERROR, "the sandbox was killed from outside (exit code 137)"),
    "killed from outside on gVisor": (
        seen("runsc", exit_code=137, killed_outside=True), Reason.ENGINE_ERROR,
        "the sandbox was killed from outside (exit code 137)"),
    "terminated from outside": (
        seen("runsc", exit_code=143, killed_outside=True), Reason.ENGINE_ERROR,
        "the sandbox was killed from outside (exit code 143)"),
    "killed from outside after its last word": (
        seen(exit_code=137, trailer=exited(0)), Reason.ENGINE_ERROR,
        "the sandbox was killed from outside (exit code 137)"),
    "exit 0, but the connection broke": (
        seen(exit_code=0), Reason.ENGINE_ERROR, "the end of the sandbox's output was lost (exit code 0)"),
    "exit 1, but the connection broke": (
        seen("runsc", exit_code=1), Reason.ENGINE_ERROR, "the end of the sandbox's output was lost (exit code 1)"),
    "gVisor's kernel failed far below its limit": (
        seen("runsc", exit_code=2, counters=Counters(peak_processes=33)), Reason.ENGINE_ERROR,
        "the end of the sandbox's output was lost (exit code 2)"),
    "crun killed from nowhere, as on any shared kernel": (
        seen("crun", exit_code=137), Reason.ENGINE_ERROR, "the sandbox was killed from outside (exit code 137)"),
    "no signal has this number": (
        seen("runsc", exit_code=250), Reason.ENGINE_ERROR, "the end of the sandbox's output was lost (exit code 250)"),
    "lost": (seen(exit_code=None), Reason.ENGINE_ERROR, "the sandbox was lost: no exit code"),
    "lost for a reason": (
        seen(exit_code=None, daemon_error="shim died"), Reason.ENGINE_ERROR, "the sandbox was lost: shim died"),
    "no interpreter": (
        seen(exit_code=127, started=False, stderr_excerpt="python3: not found"), Reason.ENGINE_UNAVAILABLE,
        "the sandbox ended before the code started (exit code 127): python3: not found"),
    "the daemon knows best": (
        seen(exit_code=128, started=False, daemon_error="exec failed", stderr_excerpt="x"), Reason.ENGINE_UNAVAILABLE,
        "the sandbox ended before the code started (exit code 128): exec failed"),
    "nobody knows": (
        seen(exit_code=1, started=False), Reason.ENGINE_UNAVAILABLE,
        "the sandbox ended before the code started (exit code 1): no reason given"),
    "out of memory before the code": (
        seen(exit_code=137, started=False, oom_killed=True), Reason.ENGINE_UNAVAILABLE,
        "the sandbox ended before the code started (exit code 137): no reason given"),
    "never came up": (
        seen(exit_code=137, started=False, timed_out=True), Reason.ENGINE_UNAVAILABLE,
        "the sandbox did not come up in time: no reason given"),
}  # fmt: skip


@pytest.mark.parametrize(("evidence", "status", "reason", "code", "signal", "error"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(evidence, status, reason, code, signal, error):
    verdict = judge(evidence)
    assert (verdict.status, verdict.reason) == (status, reason)
    assert (verdict.exit_code, verdict.signal, verdict.error) == (code, signal, error)


@pytest.mark.parametrize(("evidence", "reason", "message"), NO_VERDICT.values(), ids=NO_VERDICT)
def test_no_verdict(evidence, reason, message):
    with pytest.raises(TaskError) as caught:
        judge(evidence)
    assert (caught.value.reason, str(caught.value)) == (reason, message)


exit_codes = st.integers(min_value=0, max_value=255)
trailers = st.builds(Trailer, exit_code=exit_codes) | st.builds(Trailer, signal=exit_codes)
evidences = st.builds(
    Evidence,
    runtime=st.sampled_from(["runc", "runsc", "kata"]),
    limits=st.just(LIMITS),
    started=st.booleans(),
    exit_code=st.none() | exit_codes | st.integers(),
    oom_killed=st.booleans(),
    timed_out=st.booleans(),
    flooded=st.booleans(),
    cancelled=st.booleans(),
    killed_outside=st.booleans(),
    trailer=st.none() | trailers,
    daemon_error=st.text(max_size=5),
    stderr_excerpt=st.text(max_size=5),
)
ends = st.tuples(st.sampled_from(["runc", "runsc"]), exit_codes, trailers)


def _judged(evidence):
    """The verdict, or the reason why there is none."""
    try:
        return judge(evidence)
    except TaskError as error:
        return error.reason


@given(evidences)
def test_any_evidence_has_a_verdict_or_a_task_error(evidence):
    """A verdict is completed exactly where it has no error, and then its exit code is 0."""
    verdict = _judged(evidence)
    if isinstance(verdict, Reason):
        assert verdict in {Reason.ENGINE_UNAVAILABLE, Reason.ENGINE_ERROR}
        return
    assert (verdict.status is COMPLETED) == (verdict.error is None) == (verdict.reason is Reason.EXITED)
    assert verdict.status is not COMPLETED or verdict.exit_code == 0 == evidence.exit_code
    assert verdict.exit_code is None or verdict.signal is None


@given(ends)
@example(("runc", 137, Trailer(exit_code=0)))
@example(("runc", 1, Trailer(exit_code=0)))
@example(("runsc", 2, Trailer(signal=9)))
def test_a_trailer_that_the_daemon_contradicts_counts_for_nothing(end):
    runtime, code, trailer = end
    assume(trailer.exit_status != code)
    told = _judged(seen(runtime, exit_code=code, trailer=trailer))
    assert told == _judged(seen(runtime, exit_code=code))


@given(ends, st.booleans())
def test_no_trailer_turns_a_failure_into_success_or_invents_an_exit_code(end, oom_killed):
    runtime, code, trailer = end
    verdict = _judged(seen(runtime, exit_code=code, trailer=trailer, oom_killed=oom_killed))
    if isinstance(verdict, Reason):
        return
    assert (verdict.status is COMPLETED) == (code == 0)
    assert verdict.exit_code in {None, code}
    assert verdict.signal in {None, code - 128}
