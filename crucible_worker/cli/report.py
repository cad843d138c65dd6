"""What `run` says of itself on port 8082."""

import dataclasses
import datetime as dt
import time
from collections.abc import Mapping
from typing import Any

from crucible_worker import __version__
from crucible_worker.engines.fleet import Fleet
from crucible_worker.errors import JournalError
from crucible_worker.journal import Journal
from crucible_worker.lifecycle import Stages
from crucible_worker.observe.masking import Mask
from crucible_worker.observe.metrics import Metrics
from crucible_worker.observe.page import Page
from crucible_worker.observe.server import HealthReport
from crucible_worker.settings import Settings
from crucible_worker.vitals import Vitals


class Report:
    """Asks the rooms at each request; none of them waits for a daemon or a queue."""

    def __init__(
        self,
        settings: Settings,
        *,
        vitals: Vitals,
        fleet: Fleet,
        stages: Stages,
        journal: Journal,
        metrics: Metrics,
        mask: Mask,
    ) -> None:
        """`mask` hides secrets in what other programs have said."""
        self._settings = settings
        self._vitals = vitals
        self._fleet = fleet
        self._stages = stages
        self._journal = journal
        self._metrics = metrics
        self._mask = mask
        self._page = Page()
        self._started = time.monotonic()

    def health(self) -> HealthReport:
        """Whether the worker is well, and whether it takes tasks."""
        stalled, troubles = self._vitals.stalled(), self._vitals.troubles()
        working = self._fleet.available()
        draining = ["draining"] if self._stages.drain.is_set() else []
        reasons = stalled + troubles + draining + ([] if working or troubles else ["no engine has been probed yet"])
        return HealthReport(
            ok=working and not stalled,
            ready=not reasons,
            reasons=[self._mask(words) for words in reasons],
            body=self._body(),
        )

    def _body(self) -> Mapping[str, Any]:
        return {
            "worker_id": self._settings.worker_id,
            "version": __version__,
            "engines": {name: dataclasses.asdict(state) for name, state in self._fleet.states().items()},
            "queue_url": self._settings.queue_url,
            "last_poll_age_seconds": self._vitals.last_poll_age(),
            "draining": self._stages.drain.is_set(),
        }

    def status(self) -> Mapping[str, Any]:
        """All that is known."""
        report = self.health()
        return self._status(report)

    def _status(self, report: HealthReport) -> Mapping[str, Any]:
        return {
            **report.body,
            "reasons": report.reasons,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "slots": self._vitals.slots(),
            "warm": self._fleet.warmth.ready(),
            "journal": self._counts(),
            "recent": self._vitals.recent(),
        }

    def headline(self) -> str:
        """One line for whoever watches many services."""
        report, slots = self.health(), self._vitals.slots()
        busy = sum(slot["eval_id"] is not None for slot in slots)
        reasons = f" ({'; '.join(report.reasons)})" if report.reasons else ""
        return f"{_state(report)}{reasons}; {busy} of {self._settings.concurrency} slots busy"

    def page(self) -> tuple[Mapping[str, str], bytes]:
        """(headers, HTML) of the status page."""
        report = self.health()
        minutes = self._metrics.history.minutes()
        now = dt.datetime.now(dt.UTC)
        return self._page.headers, self._page.render(_state(report), self._status(report), minutes, now)

    def metrics(self) -> tuple[str, bytes]:
        """(content type, body) for Prometheus."""
        for state, count in self._counts().items():
            self._metrics.journal(state, count)
        self._metrics.warm(sum(self._fleet.warmth.ready().values()))
        return self._metrics.render()

    def _counts(self) -> Mapping[str, int]:
        try:
            return self._journal.counts()
        except JournalError:  # a disk in trouble has a reason of its own
            return {}


def _state(report: HealthReport) -> str:
    return "unhealthy" if not report.ok else "healthy" if report.ready else "not ready"
