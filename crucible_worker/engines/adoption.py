"""A sandbox that another process has started: followed from where that one was cut off to its end."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import BOOT_SECONDS, Cancel, Follower, Witness
from crucible_worker.engines.judgement import judged
from crucible_worker.engines.output import Trailer
from crucible_worker.engines.prepared import destroy, destroy_quietly
from crucible_worker.errors import TaskError
from crucible_worker.model import Captured, Limits, Reason, Run

_LARGEST_OWN = 125


def adopt(
    daemon: Daemon,
    container: str,
    limits: Limits,
    left: float,
    heard: Iterable[bytes],
    cancel: Cancel,
    witness: Witness,
) -> Run:
    """Follow a sandbox to its verdict and remove it. `left` is what its code may still take, in seconds.

    `heard` is what its first reader has kept of its stream. What it printed while nobody listened is lost, so both
    streams count as truncated. Raises TaskError (worker_crashed) where no verdict can be had any more, DaemonGoneError
    where nothing can be known now, and it may be tried again.
    """
    found = daemon.inspect(container)
    if found is None:
        raise TaskError(Reason.WORKER_CRASHED, "the worker ended while it ran this task, and its sandbox is gone")
    runtime = str(found["HostConfig"]["Runtime"])
    follower = Follower(daemon, container, limits, cancel, witness)
    follower.replay(heard)
    try:
        if not follower.conversation.started:
            raise TaskError(Reason.WORKER_CRASHED, "the worker ended while it ran this task, and its output is lost")
        if found["State"]["Running"]:
            _listen(daemon, container, follower, left, witness)
        exit_code, state = follower.finish()
        follower.ends.timed_out |= not follower.ends.any() and _overran(state, limits)
        image, image_id = str(found["Config"]["Image"]), str(found["Image"])
        run = judged(daemon, runtime, follower, container, (exit_code, state), image, image_id, _last_word)
    except TaskError as error:
        destroy_quietly(daemon, container)
        raise TaskError(Reason.WORKER_CRASHED, str(error)) from error
    destroy(daemon, container)
    return dataclasses.replace(run, stdout=_cut(run.stdout), stderr=_cut(run.stderr), adopted=True)


def _listen(daemon: Daemon, container: str, follower: Follower, left: float, witness: Witness) -> None:
    """Read on, unless it has ended by now: to such a one the daemon would attach us for ever."""
    with closing(daemon.attach(container)) as streams:
        again = daemon.inspect(container)
        if again is not None and again["State"]["Running"]:
            witness.created(container)
            follower.read(streams.socket, left)


def _overran(state: Mapping[str, Any], limits: Limits) -> bool:
    """Whether a sandbox that ended unwatched had more than its time. Its boot is not counted against it."""
    try:
        began, ended = (dt.datetime.fromisoformat(state[key]) for key in ("StartedAt", "FinishedAt"))
    except (KeyError, ValueError):
        return False
    return (ended - began).total_seconds() > limits.timeout_seconds + BOOT_SECONDS


def _last_word(exit_code: int | None) -> Trailer | None:
    """What stands for the supervisor's trailer where nobody heard it: the daemon's exit code alone.

    Larger ones may be those of a signal, from a daemon or a host that went down meanwhile.
    """
    if exit_code is None or exit_code > _LARGEST_OWN:
        raise TaskError(Reason.WORKER_CRASHED, f"nobody has seen how the sandbox ended (exit code {exit_code})")
    return Trailer(exit_code=exit_code)


def _cut(stream: Captured) -> Captured:
    return dataclasses.replace(stream, truncated=True)
