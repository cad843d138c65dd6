"""What `run` says to the queue and to the event bus, and what it logs of how that was taken."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from crucible_worker.cli import composition
from crucible_worker.delivery import Delivery, Outcome
from crucible_worker.errors import JournalError, RejectedError
from crucible_worker.journal import EVENTS, RESULTS, Entry, Journal
from crucible_worker.leases import Leases
from crucible_worker.livelogs import Sink
from crucible_worker.model import Event, EventKind
from crucible_worker.observe.metrics import Metrics
from crucible_worker.queues.http import HttpQueue
from crucible_worker.settings import Settings
from crucible_worker.vitals import Vitals

EVENT_LIMIT = 10_000


class Bus(Protocol):
    """Whoever is told about evaluations."""

    def publish(self, event: Event) -> None:
        """Tell one event."""


class Deliveries:
    """Both lanes of the journal, and who listens at their ends."""

    def __init__(
        self,
        *,
        journal: Journal,
        queue: HttpQueue,
        bus: Bus | None,
        leases: Leases,
        vitals: Vitals,
        metrics: Metrics,
        reload_key: Callable[[], None],
        log: Any,  # noqa: ANN401 - structlog's
    ) -> None:
        self._journal = journal
        self._queue = queue
        self._bus = bus
        self._bus_down = False
        self._leases = leases
        self._vitals = vitals
        self._metrics = metrics
        self._reload_key = reload_key
        self._log = log
        self.results = Delivery(journal, RESULTS, self._post_result, self._result_outcome)
        self.events = Delivery(journal, EVENTS, self._post_event, self._event_outcome)

    def _post_result(self, entry: Entry) -> None:
        self._queue.settle(entry.kind, entry.eval_id, entry.document)

    def _result_outcome(self, entry: Entry, outcome: Outcome, words: str) -> None:
        self._metrics.delivered(outcome)
        about = {"eval_id": entry.eval_id, "kind": entry.kind}
        if outcome is not Outcome.RETRY:
            refused = outcome is Outcome.KEY_REFUSED
            self._vitals.trouble("key", f"the queue refuses the key: it {words}" if refused else None)
        if outcome in {Outcome.ACCEPTED, Outcome.ALREADY_SETTLED, Outcome.REJECTED}:
            self._leases.settled(entry.eval_id, entry.lease)
        match outcome:
            case Outcome.ACCEPTED:
                self._log.info("result_delivered", **about)
            case Outcome.ALREADY_SETTLED:
                self._log.warning("result_already_settled", **about, answer=words)
            case Outcome.REJECTED:
                self._log.error("result_rejected", **about, answer=words, detail="kept among the dead letters")
            case Outcome.KEY_REFUSED:
                self._reload_key()
                self._log.error("result_key_refused", **about, answer=words)
            case Outcome.RETRY:
                self._log.warning("result_delivery_failed", **about, error=f"the queue {words}")

    def tell(self, event: Event) -> None:
        """Put an event on its way. Events never stand in a task's way: what the disk does not take is dropped."""
        if self._bus is None:
            return
        try:
            self._journal.tell(event.kind, event.eval_id, dataclasses.asdict(event), time.time(), EVENT_LIMIT)
        except JournalError as error:
            self._log.warning("event_dropped", kind=event.kind, error=str(error))
        self.events.wake()

    def _post_event(self, entry: Entry) -> None:
        if self._bus is None:
            return
        try:
            self._bus.publish(Event(**{**entry.body, "kind": EventKind(entry.kind)}))
        except RejectedError as error:
            # A bus without such an endpoint is an operator's choice: said once, and the events are dropped.
            if self._vitals.first_time("event_bus_refuses"):
                self._log.warning("event_bus_refuses", error=f"the event bus {error}", detail="its events are dropped")

    def _event_outcome(self, entry: Entry, outcome: Outcome, words: str) -> None:
        failed = outcome in {Outcome.RETRY, Outcome.KEY_REFUSED}
        if failed and not self._bus_down:
            self._log.warning("event_bus_unreachable", eval_id=entry.eval_id, error=f"the event bus {words}")
        if self._bus_down and not failed:
            self._log.info("event_bus_restored")
        self._bus_down = failed


def bus(settings: Settings, key: Callable[[], str]) -> Bus | None:
    """The event bus that a setting names; its libraries are imported only where it is used."""
    url = settings.event_bus_url or f"{settings.api_url}/events"
    if url == "none":
        return None
    if url.startswith("redis"):
        from crucible_worker.events.redis_pubsub import RedisPubSub

        return RedisPubSub(url, "EVENT_BUS_URL")
    from crucible_worker.events.cloudevents import CloudEvents

    # The platform's key goes to the platform only.
    platform = url == settings.api_url or url.startswith(f"{settings.api_url}/")
    transport = composition.transport(settings, key if platform else str)
    return CloudEvents(url, transport, f"crucible-worker/{settings.worker_id}")


def live_sink(settings: Settings, queue: HttpQueue) -> Sink | None:
    """Where the output of running tasks goes, if anywhere."""
    if settings.live_logs in {"", "none"}:
        return None
    if settings.live_logs == "queue":
        return queue
    from crucible_worker.events.redis_pubsub import RedisPubSub

    return RedisPubSub(settings.live_logs, "CRUCIBLE_LIVE_LOGS")
