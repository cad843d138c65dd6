"""From evidence to verdict: one pure function, and the only place where a run is judged.

What the code's own supervisor says (the trailer) is believed only where the daemon's exit code agrees with it.
"""

import signal
from dataclasses import dataclass

from crucible_worker.engines.output import Trailer
from crucible_worker.engines.policy import PLAIN_RUNTIME
from crucible_worker.errors import TaskError
from crucible_worker.model import Limits, Reason, Status, Verdict

_KILLED = 128 + signal.SIGKILL
# How runsc reports a sandbox that the kernel killed for its memory; 128 is google/gvisor#2433.
_SENTRY_KILLED = frozenset({_KILLED, 128})


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
    trailer: Trailer | None = None
    daemon_error: str = ""
    stderr_excerpt: str = ""


def judge(evidence: Evidence) -> Verdict:
    """The verdict on the code.

    Raises TaskError (engine_unavailable) where the code never started, and (engine_error) where it was ended by
    somebody else than itself or us: then there is no verdict.
    """
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
    return _by_its_own_end(evidence)


def _never_started(evidence: Evidence) -> str:
    detail = evidence.daemon_error or evidence.stderr_excerpt or "no reason given"
    if evidence.timed_out:
        return f"the sandbox did not come up in time: {detail}"
    return f"the sandbox ended before the code started (exit code {evidence.exit_code}): {detail}"


def _out_of_memory(evidence: Evidence) -> bool:
    if evidence.oom_killed:
        return evidence.exit_code != 0
    # Nothing inside a gVisor sandbox can kill its kernel; where that was killed, and not by us, it was for its memory.
    return evidence.runtime != PLAIN_RUNTIME and evidence.trailer is None and evidence.exit_code in _SENTRY_KILLED


def _by_its_own_end(evidence: Evidence) -> Verdict:
    code, trailer = evidence.exit_code, evidence.trailer
    if code is None:
        raise TaskError(Reason.ENGINE_ERROR, f"the sandbox was lost: {evidence.daemon_error or 'no exit code'}")
    if trailer is not None and trailer.signal is not None and code == 128 + trailer.signal:
        error = f"killed by signal {trailer.signal} ({_signal_name(trailer.signal)})"
        return Verdict(Status.FAILED, Reason.SIGNALED, signal=trailer.signal, error=error)
    if trailer is None and code in {_KILLED, 128 + signal.SIGTERM}:
        # The supervisor cannot be killed from inside: the kernel or an operator did this.
        raise TaskError(Reason.ENGINE_ERROR, f"the sandbox was killed from outside (exit code {code})")
    if code == 0:
        return Verdict(Status.COMPLETED, Reason.EXITED, exit_code=0)
    return Verdict(Status.FAILED, Reason.EXITED_NONZERO, exit_code=code, error=f"exit code {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time" if number >= signal.SIGRTMIN else "unknown"
