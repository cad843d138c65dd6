"""What `run` does beside its tasks: probes the engines, and removes sandboxes that nobody looks after."""

import threading
from collections.abc import Mapping
from typing import Any

from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.fleet import EngineState, Fleet
from crucible_worker.engines.leftovers import Known
from crucible_worker.engines.reconciler import Reconciler
from crucible_worker.errors import JournalError, TaskError
from crucible_worker.journal import Journal
from crucible_worker.observe.metrics import Metrics
from crucible_worker.vitals import Vitals

# While an engine does not work, look often.
_RETRY_SECONDS = 5.0
# For the daemon to remove one sandbox, or to list them.
_CALL_SECONDS = 30.0


class Upkeep:
    """One thread's work, again and again."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        journal: Journal,
        docker_host: str,
        worker_id: str,
        boot: str,
        interval: float,
        vitals: Vitals,
        metrics: Metrics,
        log: Any,  # noqa: ANN401 - structlog's
    ) -> None:
        """`boot` is the id of this life; `interval` in seconds."""
        self._fleet = fleet
        self._journal = journal
        self._reconciler = Reconciler(Daemon(docker_host, _CALL_SECONDS), worker_id)
        self._boot = boot
        self._interval = interval
        self._vitals = vitals
        self._metrics = metrics
        self._log = log
        self._claiming = threading.Event()
        self._wake = threading.Event()

    def wake(self) -> None:
        """Something has changed: look again now."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Go on until `stop` is set."""
        while not stop.is_set():
            self._wake.clear()
            self._wake.wait(self.turn())

    def turn(self) -> float:
        """Look once at everything. Returns the seconds until it is due again."""
        self._fleet.probe_all()
        self._sweep()
        self._tell_of_accounting()
        states = self._fleet.states().values()
        working = any(state.available for state in states)
        if working:
            self._claiming.set()
        else:
            self._claiming.clear()
        # A runtime that the daemon does not know stays unknown for long; one that fails may be well again soon.
        return self._interval if working else min(_RETRY_SECONDS, self._interval)

    def may_claim(self) -> bool:
        """Whether an engine works, and all have been tried: a task must not fall back from one that is just waking."""
        working = self._fleet.available()
        self._vitals.trouble("engines", None if working else self._why(self._fleet.states()))
        return self._claiming.is_set() and working

    @staticmethod
    def _why(states: Mapping[str, EngineState]) -> str:
        return "no engine works: " + "; ".join(f"{name}: {state.detail}" for name, state in states.items())

    def _sweep(self) -> None:
        try:
            claims = self._journal.claims()
            spared = {str(claim.run["container"]) for claim in claims if claim.run}
            ended = [boot for boot in self._journal.boots() if boot != self._boot]
            sweep = self._reconciler.sweep(Known(ended, self._boot, frozenset(self._fleet.live), spared))
            for container in sweep.removed:
                self._log.warning("orphan_removed", container_id=container)
            for container in sweep.stubborn:
                if self._vitals.first_time(f"stubborn {container}"):
                    self._log.error("orphan_not_removed", container_id=container, detail="remove it by hand")
            self._fleet.sweep_cgroups()
            if ended and not spared and not sweep.stubborn:
                self._journal.swept(ended)
        except (DaemonGoneError, TaskError, JournalError):
            return  # the next round tries again
        self._metrics.orphans_removed(len(sweep.removed))

    def _tell_of_accounting(self) -> None:
        trouble = self._fleet.accounting_trouble()
        if trouble and self._vitals.first_time("accounting_by_daemon"):
            self._log.info("accounting_by_daemon", detail=trouble)
