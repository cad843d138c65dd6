"""What is known of a sandbox at its end, put together and judged."""

from collections.abc import Callable, Mapping
from typing import Any

from crucible_worker.engines import verdict
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import Follower
from crucible_worker.engines.output import Trailer
from crucible_worker.model import Run


def judged(
    daemon: Daemon,
    runtime: str,
    follower: Follower,
    container: str,
    end: tuple[int | None, Mapping[str, Any]],
    image: str,
    image_id: str,
    unheard: Callable[[int | None], Trailer | None] = lambda _: None,
) -> Run:
    """The verdict on a sandbox that has come to its `end`: an exit code and a final state.

    `unheard` says what to believe where its last words are missing and nobody else has ended it.
    """
    exit_code, state = end
    conversation, ends = follower.conversation, follower.ends
    trailer = conversation.finish()
    # Asked only where it matters: an end that was not ours and without a word that fits it.
    silent = (trailer is None or trailer.exit_status != exit_code) and exit_code not in {None, 0} and not ends.any()
    oom_killed = bool(state.get("OOMKilled"))
    befell = daemon.what_befell(container, state) if silent and not oom_killed else frozenset()
    if trailer is None and not (befell or oom_killed or ends.any()):
        trailer = unheard(exit_code)
    stdout, stderr = conversation.stdout.take(), conversation.stderr.take()
    evidence = verdict.Evidence(
        runtime=runtime,
        limits=follower.limits,
        started=conversation.started,
        exit_code=exit_code,
        oom_killed=oom_killed or "oom" in befell,
        timed_out=ends.timed_out,
        flooded=ends.flooded,
        cancelled=ends.cancelled,
        killed_outside="kill" in befell,
        trailer=trailer,
        counters=follower.meter.counters,
        daemon_error=str(state.get("Error") or ""),
        stderr_excerpt=stderr.data[-400:].decode("utf-8", "replace").strip(),
    )
    return Run(
        verdict=verdict.judge(evidence),
        stdout=stdout,
        stderr=stderr,
        runtime=runtime,
        image=image,
        image_id=image_id,
        phases_ms={},
        container_id=container,
        cpu_ms=follower.meter.cpu_ms,
        peak_memory_bytes=follower.meter.counters.peak_memory_bytes,
        artifacts=follower.artifacts.artifacts(),
    )
