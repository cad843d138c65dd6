"""Prometheus metrics, named by what happened. Nothing that a task says becomes a label."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from crucible_worker.model import Reason
from crucible_worker.observe.history import History

PREFIX = "crucible_worker"
POLLS = ("task", "empty", "error", "rejected")
DELIVERIES = ("accepted", "already_settled", "rejected", "retry", "key_refused")
PHASES = ("create", "start", "boot", "run", "exit")
JOURNAL_STATES = ("claimed", "pending", "events", "dead")
OTHER = "other"
_TASK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PHASE_SECONDS = (0.001, 0.0025, *_TASK_SECONDS)
_POLL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 30, 60)


class Metrics:
    """Counts what the worker does, in a registry of its own. Thread-safe."""

    def __init__(self, *, engines: Iterable[str], slots: int, version: str) -> None:
        """`engines` are the configured ones; every series whose labels are known starts at 0."""
        self.history = History()
        self._registry = CollectorRegistry()
        self._engines = (*engines, OTHER)
        self._polls = self._counter("polls", "Polls of the queue by how they ended.", "outcome")
        self._poll_seconds = self._histogram("poll_duration_seconds", "How long a poll took.", _POLL_SECONDS)
        self._tasks = self._counter(
            "tasks", "Tasks by the engine that ran them and how they ended.", "engine", "reason"
        )
        self._task_seconds = self._histogram("task_duration_seconds", "From claim to recorded result.", _TASK_SECONDS)
        self._phase_seconds = self._histogram("task_phase_seconds", "A task's time by phase.", _PHASE_SECONDS, "phase")
        self._slots = self._gauge("slots", "Tasks that may run at once.")
        self._slots_in_use = self._gauge("slots_in_use", "Tasks that run now.")
        self._engine_available = self._gauge("engine_available", "1 if a sandbox really ran on it last time.", "engine")
        self._connection_errors = self._counter("queue_connection_errors", "Calls the queue did not answer properly.")
        self._deliveries = self._counter("deliveries", "Attempts to deliver a result or event, by outcome.", "result")
        self._journal = self._gauge("journal_entries", "What the journal holds.", "state")
        self._warm_ready = self._gauge("warm_ready", "Sandboxes that wait for a task.")
        self._orphans = self._counter("orphans_removed", "Sandboxes removed that a crash had left behind.")
        self._live_dropped = self._counter(
            "live_log_dropped_bytes", "Output of running tasks that nobody took in time."
        )
        self._slots.set(slots)
        self._gauge("build_info", "Always 1; which version runs.", "version").labels(version).set(1)
        self._start_at_zero()

    def polled(self, outcome: str, seconds: float) -> None:
        """A poll of the queue ended; `outcome` is one of POLLS."""
        self._polls.labels(outcome).inc()
        self._poll_seconds.observe(seconds)

    def queue_connection_failed(self) -> None:
        """The queue could not be reached, or made no sense."""
        self._connection_errors.inc()

    def task_finished(self, engine: str, reason: Reason, seconds: float, phases: Mapping[str, float]) -> None:
        """A task has ended after `seconds`; `phases` in seconds too. An engine that is not configured is `other`."""
        self._tasks.labels(engine if engine in self._engines else OTHER, reason.value).inc()
        self._task_seconds.observe(seconds)
        self.history.add(reason, seconds)
        for phase, lasted in phases.items():
            self._phase_seconds.labels(phase).observe(lasted)

    def slot_taken(self) -> None:
        """A task begins."""
        self._slots_in_use.inc()

    def slot_freed(self) -> None:
        """A task has ended."""
        self._slots_in_use.dec()

    def engine_available(self, engine: str, available: bool) -> None:  # noqa: FBT001 - the fact itself
        """An engine was probed."""
        self._engine_available.labels(engine if engine in self._engines else OTHER).set(available)

    def delivered(self, result: str) -> None:
        """An attempt to deliver ended; `result` is one of DELIVERIES."""
        self._deliveries.labels(result).inc()

    def journal(self, state: str, entries: int) -> None:
        """The journal holds so many entries in this state, one of JOURNAL_STATES."""
        self._journal.labels(state).set(entries)

    def warm(self, ready: int) -> None:
        """So many sandboxes wait for a task."""
        self._warm_ready.set(ready)

    def orphans_removed(self, count: int) -> None:
        """So many sandboxes of an earlier life were removed."""
        self._orphans.inc(count)

    def live_log_dropped(self, count: int) -> None:
        """So many bytes of live logs were left out."""
        self._live_dropped.inc(count)

    def render(self) -> tuple[str, bytes]:
        """(content type, body) in Prometheus' text format 0.0.4."""
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(_WithoutBirthdays(self._registry))

    def _start_at_zero(self) -> None:
        for outcome in POLLS:
            self._polls.labels(outcome)
        for engine in self._engines:
            for reason in Reason:
                self._tasks.labels(engine, reason.value)
        for engine in self._engines[:-1]:
            self._engine_available.labels(engine)
        for phase in PHASES:
            self._phase_seconds.labels(phase)
        for result in DELIVERIES:
            self._deliveries.labels(result)
        for state in JOURNAL_STATES:
            self._journal.labels(state)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, registry=self._registry, buckets=tuple(buckets))


class _WithoutBirthdays(Collector):
    """Leaves out the `_created` series, which double the page and which the text format has no use for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
