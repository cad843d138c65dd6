"""From evidence to verdict: one pure function, and the only place where a run is judged.

What the code's own supervisor says (the trailer) is believed only where the daemon's exit code agrees with it.
"""

import dataclasses
import signal
from dataclasses import dataclass

from crucible_worker.engines.counters import Counters
from crucible_worker.engines.output import Trailer
from crucible_worker.engines.policy import RUNTIME_THREADS
from crucible_worker.engines.runtimes import is_gvisor
from crucible_worker.errors import TaskError
from crucible_worker.model import Limits, Reason, Status, Verdict

# Without a trailer, where only the sandbox's own kernel can have ended: gVisor's sentry killed for its memory
# (google/gvisor#2433), and the Go runtime's exit when it gets no further thread (google/gvisor#2490).
_SENTRY_OUT_OF_MEMORY = 128
_SENTRY_OUT_OF_THREADS = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a run from outside the sandbox, and what its supervisor said."""

    runtime: str
    limits: Limits
    started: bool
    exit_code: int | None
    oom_killed: bool = False
    timed_out: bool = False
    flooded: bool = False
    cancelled: bool = False
    killed_outside: bool = False
    trailer: Trailer | None = None
    counters: Counters = Counters()
    daemon_error: str = ""
    stderr_excerpt: str = ""


def judge(evidence: Evidence) -> Verdict:
    """The verdict on the code.

    Raises TaskError (engine_unavailable) where the code never started, and (engine_error) where it was ended by
    somebody else than itself or us, or its output was lost: then there is no verdict.
    """
    if evidence.trailer is not None and evidence.trailer.exit_status != evidence.exit_code:
        evidence = dataclasses.replace(evidence, trailer=None)
    if evidence.cancelled:
        return Verdict(Status.ERROR, Reason.CANCELLED, error="cancelled while it ran")
    if not evidence.started:
        raise TaskError(Reason.ENGINE_UNAVAILABLE, _never_started(evidence))
    limits = evidence.limits
    if evidence.flooded:
        error = f"output went past {limits.output_limit_bytes} bytes"
        return Verdict(Status.FAILED, Reason.OUTPUT_LIMIT, error=error)
    if evidence.timed_out:
        error = f"still running after {limits.timeout_seconds:g} seconds"
        return Verdict(Status.TIMEOUT, Reason.TIMEOUT, error=error)
    if _out_of_memory(evidence):
        error = f"needed more than {limits.memory_bytes} bytes of memory"
        code = evidence.exit_code if evidence.trailer and evidence.trailer.exit_code else None
        return Verdict(Status.FAILED, Reason.OUT_OF_MEMORY, exit_code=code, error=error)
    if _out_of_processes(evidence):
        error = f"the code needed more than its limit of {limits.processes} processes"
        code = evidence.exit_code if evidence.trailer else None
        return Verdict(Status.FAILED, Reason.PROCESS_LIMIT, exit_code=code, error=error)
    return _by_its_own_end(evidence)


def _never_started(evidence: Evidence) -> str:
    detail = evidence.daemon_error or evidence.stderr_excerpt or "no reason given"
    if evidence.timed_out:
        return f"the sandbox did not come up in time: {detail}"
    return f"the sandbox ended before the code started (exit code {evidence.exit_code}): {detail}"


def _out_of_memory(evidence: Evidence) -> bool:
    if evidence.oom_killed or evidence.counters.oom_kills:
        return evidence.exit_code != 0
    return _silent(evidence) and evidence.exit_code == _SENTRY_OUT_OF_MEMORY


def _out_of_processes(evidence: Evidence) -> bool:
    if evidence.exit_code in {None, 0} or (evidence.trailer and evidence.trailer.signal):
        return False
    if _silent(evidence) and evidence.exit_code == _SENTRY_OUT_OF_THREADS:
        # Go ends so for any reason. A sandbox that never came near its limit was not short of threads.
        peak = evidence.counters.peak_processes
        return peak is None or peak >= evidence.limits.processes + RUNTIME_THREADS
    if evidence.trailer is None and (evidence.killed_outside or not _silent(evidence)):
        return False
    return bool(evidence.counters.forks_refused)


def _silent(evidence: Evidence) -> bool:
    """Whether gVisor's kernel ended without a word from its supervisor."""
    return is_gvisor(evidence.runtime) and evidence.trailer is None


def _by_its_own_end(evidence: Evidence) -> Verdict:
    code = evidence.exit_code
    if code is None:
        raise TaskError(Reason.ENGINE_ERROR, f"the sandbox was lost: {evidence.daemon_error or 'no exit code'}")
    killer = _killer(evidence)
    if killer is not None:
        error = f"killed by signal {killer} ({_signal_name(killer)})"
        return Verdict(Status.FAILED, Reason.SIGNALED, signal=killer, error=error)
    if evidence.trailer is None:
        # A supervisor that ends has its last word; where it is missing, so is output before it.
        raise TaskError(Reason.ENGINE_ERROR, f"the end of the sandbox's output was lost (exit code {code})")
    if code == 0:
        return Verdict(Status.COMPLETED, Reason.EXITED, exit_code=0)
    return Verdict(Status.FAILED, Reason.EXITED_NONZERO, exit_code=code, error=f"exit code {code}")


def _killer(evidence: Evidence) -> int | None:
    """The signal that ended the code, if one did."""
    code = evidence.exit_code or 0
    if evidence.trailer is not None:
        return evidence.trailer.signal or None
    if code <= 128 or code - 128 >= signal.NSIG:
        return None
    if evidence.killed_outside or not is_gvisor(evidence.runtime):
        # Linux spares a supervisor that is PID 1 from its code's signals: the host did this.
        raise TaskError(Reason.ENGINE_ERROR, f"the sandbox was killed from outside (exit code {code})")
    # gVisor does not: code that kills its supervisor ends itself by that signal.
    return code - 128


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time" if number >= signal.SIGRTMIN else "unknown"
