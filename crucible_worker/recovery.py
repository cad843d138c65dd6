"""What a worker does first: settle, or take over, what its earlier lives have left open."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from crucible_worker import outbox
from crucible_worker.journal import Claim
from crucible_worker.model import Reason

# A task that has ended so many lives of workers is what ends them.
MAX_CRASHES = 3


class Journal(Protocol):
    """Where open claims are."""

    def claims(self) -> list[Claim]:
        """All of them."""

    def crashed(self, eval_id: str, at: float) -> int:
        """Note one more crash over a task, and tell how many there were."""

    def settle(self, claim: int, kind: str, eval_id: str, body: Mapping[str, Any], at: float) -> None:
        """Replace a claim by what is to be said of it."""


def settle_earlier(journal: Journal, said: Callable[[Claim, str, Mapping[str, Any], Reason], None]) -> list[Claim]:
    """Settle every open claim whose code has not started. Returns the others, whose sandboxes may still be there.

    `said` is told what the queue will be: the claim, the call, its body and the reason. Raises JournalError.
    """
    started = []
    for claim in journal.claims():
        crashes = journal.crashed(claim.eval_id, time.time())
        if crashes >= MAX_CRASHES:
            reason = Reason.POISON
            kind, body = outbox.FAIL, outbox.failure(reason, f"{crashes} workers ended while they had it", claim.lease)
        elif claim.run is not None:
            started.append(claim)
            continue
        else:
            reason = Reason.WORKER_CRASHED
            kind, body = outbox.unfinished(reason, "the worker ended before the code had started", claim.lease)
        journal.settle(claim.id, kind, claim.eval_id, body, time.time())
        said(claim, kind, body, reason)
    return started
