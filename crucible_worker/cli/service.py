"""The composition root of `run`: every adapter is made here, and handed to those that declared what they need."""

import dataclasses
import datetime as dt
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from crucible_worker import __version__, lifecycle, outbox
from crucible_worker.cli import composition
from crucible_worker.delivery import Delivery, Outcome
from crucible_worker.engines.daemon import Daemon, DaemonGoneError
from crucible_worker.engines.fleet import EngineState
from crucible_worker.engines.leftovers import leftovers
from crucible_worker.errors import ExitCode, ExitError, JournalError, RejectedError, TaskError
from crucible_worker.journal import EVENTS, RESULTS, Claim, Entry, Journal
from crucible_worker.model import Event, EventKind, Reason
from crucible_worker.observe import logs
from crucible_worker.observe.metrics import Metrics
from crucible_worker.observe.server import HealthReport, HealthServer
from crucible_worker.queues.http import HttpQueue
from crucible_worker.settings import Loaded, Settings
from crucible_worker.vitals import Vitals
from crucible_worker.worker import Pace, Worker

EVENT_LIMIT = 10_000
# While no engine works, nothing else can happen: look often.
_ENGINE_RETRY_SECONDS = 5.0
_CANARY_SECONDS = 20.0


class Bus(Protocol):
    """Whoever is told about evaluations."""

    def publish(self, event: Event) -> None:
        """Tell one event."""


class Service:
    """One worker process."""

    def __init__(self, loaded: Loaded) -> None:
        """Raises ExitError where a setting cannot be used: a state directory, an address, a certificate."""
        settings = loaded.settings
        self._settings = settings
        self._key = composition.ApiKey(loaded)
        logs.configure(settings.worker_id, settings.log_format, settings.log_level, self._secrets)
        self._log = logs.get_logger()
        self._boot_id = uuid.uuid4().hex
        self._earlier_boots: list[str] = []
        self._vitals = Vitals()
        self._metrics = Metrics(
            engines=tuple(settings.engines), slots=settings.concurrency, version=__version__,
        )  # fmt: skip
        self._stages = lifecycle.Stages()
        self._stop = threading.Event()
        self._claiming = threading.Event()
        self._bus_is_down = threading.Event()
        self._transport = composition.transport(settings, self._key)
        self._journal = Journal(settings.state_dir)
        self._fleet = composition.fleet(settings, self._boot_id, self._engine_changed)
        self._queue = HttpQueue(
            self._transport,
            settings.queue_url,
            wait=settings.poll_wait,
            engines=tuple(settings.engines),
            languages=tuple(settings.images),
        )
        self._bus = _bus(settings, self._key)
        self._bus_down = False
        self._results = Delivery(self._journal, RESULTS, self._post_result, self._result_outcome)
        self._events = Delivery(self._journal, EVENTS, self._post_event, self._event_outcome)
        self._worker = self._make_worker(settings)

    def _make_worker(self, settings: Settings) -> Worker:
        return Worker(
            worker_id=settings.worker_id,
            queue=self._queue,
            engines=self._fleet,
            may_claim=self._may_claim,
            record=self._journal,
            tell=self._tell,
            deliver=self._results.wake,
            reload_key=self._key.reload,
            limits=settings.limits(),
            timeout_max=settings.timeout_max,
            pace=Pace(settings.poll_interval, settings.poll_backoff, settings.poll_backoff_max),
            vitals=self._vitals,
            metrics=self._metrics,
            log=self._log,
            task_context=logs.task_context,
            cancel=self._stages.cancel,
        )

    def run(self) -> int:
        """Work until told to stop. Returns the exit code."""
        settings = self._settings
        with HealthServer(
            settings.health_address, health=self._health, status=self._status, metrics=self._render_metrics,
            on_error=lambda path, error: self._log.error("health_endpoint_failed", path=path, error=repr(error)),
        ) as server:  # fmt: skip
            self._log.info(
                "worker_started", version=__version__, queue_url=settings.queue_url, health_port=server.port,
                engines=dict(settings.engines), concurrency=settings.concurrency, state_dir=settings.state_dir,
            )  # fmt: skip
            if not self._journal.durable:
                self._log.warning("journal_in_memory", detail="a crash loses results that are not delivered yet")
            self._take_over()
            self._start("results", self._results.run, self._stop)
            self._start("events", self._events.run, self._stop)
            engines = self._start("engines", self._keep_engines)
            slots = [self._start(f"slot-{n}", self._worker.run, n, self._stages.drain) for n in self._slot_numbers()]
            code = self._watch(slots)
            self._stop.set()
            if code != ExitCode.INTERRUPTED:
                # A canary that runs now takes its sandbox away before we go.
                engines.join(_CANARY_SECONDS)
            self._log.info("worker_stopped", exit_code=code, undelivered=len(self._journal.pending(RESULTS)))
        return code

    def _secrets(self) -> set[str]:
        password = urllib.parse.urlsplit(self._settings.event_bus_url).password
        return self._key.all() | ({password} if password else set())

    def _slot_numbers(self) -> range:
        return range(1, self._settings.concurrency + 1)

    def _watch(self, slots: list[threading.Thread]) -> int:
        code = lifecycle.Lifecycle(
            stages=self._stages,
            slots=slots,
            delivered=self._results.empty,
            durable=self._journal.durable,
            drain_timeout=self._settings.drain_timeout,
            stalled=self._vitals.stalled,
            reload=self._reload,
            log=self._log,
        ).watch()
        if code == ExitCode.UNDELIVERED and self._vitals.has_trouble("key"):
            return ExitCode.KEY_REFUSED
        return code

    def _start(self, name: str, target: Callable[..., None], *arguments: object) -> threading.Thread:
        """A daemon thread: none of ours may keep an exiting process alive. One that dies is noticed as a stall."""

        def guarded() -> None:
            try:
                target(*arguments)
            except Exception as error:  # noqa: BLE001 - a defect of ours; a worker that lacks a thread must not go on
                self._log.error("internal_error", thread=name, error=error, exc_info=True)
                self._vitals.collapsed(f"the thread {name} has died")

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _reload(self) -> None:
        self._key.reload()
        try:
            self._transport.reload()
        except ExitError as error:
            self._log.error("reload_failed", error=str(error))
        self._results.hurry()

    # Engines

    def _keep_engines(self) -> None:
        """Probe the engines again and again, and remove what nobody looks after."""
        while not self._stop.is_set():
            self._fleet.probe_all()
            self._sweep()
            self._tell_of_accounting()
            working = self._fleet.available()
            if working:
                self._claiming.set()
            else:
                self._claiming.clear()
            self._vitals.trouble("engines", None if working else "no engine works")
            self._stop.wait(self._settings.engine_probe_interval if working else _ENGINE_RETRY_SECONDS)

    def _may_claim(self) -> bool:
        """Whether an engine works, and all have been tried: a task must not fall back from one that is just waking."""
        return self._claiming.is_set() and self._fleet.available()

    def _engine_changed(self, name: str, state: EngineState) -> None:
        self._metrics.engine_available(name, state.available)
        if state.available:
            self._log.info("engine_available", engine=name, runtime=state.runtime)
        else:
            self._log.warning("engine_unavailable", engine=name, runtime=state.runtime, error=state.detail)

    def _sweep(self) -> None:
        """Remove the sandboxes of earlier lives, whose end the lock on the state directory proves, and overdue ones."""
        daemon = Daemon(self._settings.docker_host)
        try:
            found = daemon.containers({"crucible.worker": self._settings.worker_id})
            orphans = leftovers(found, self._earlier_boots, dt.datetime.now(dt.UTC))
            for container in orphans:
                daemon.remove(container)
                self._log.warning("orphan_removed", container_id=container)
            self._fleet.sweep_cgroups()
            if self._earlier_boots:
                self._journal.swept(self._earlier_boots)
                self._earlier_boots = []
        except (DaemonGoneError, TaskError, JournalError):
            return  # the next round tries again
        finally:
            daemon.close()
        self._metrics.orphans_removed(len(orphans))

    def _tell_of_accounting(self) -> None:
        trouble = self._fleet.accounting_trouble()
        if trouble and self._vitals.first_time("accounting_by_daemon"):
            self._log.info("accounting_by_daemon", detail=trouble)

    def _take_over(self) -> None:
        """Settle what was running when an earlier life of this worker ended without doing so."""
        try:
            self._earlier_boots = self._journal.begin(self._boot_id)
            for claim in self._journal.claims():
                self._settle_crashed(claim)
        except JournalError as error:
            words = f"the state directory {self._settings.state_dir} cannot be written: {error}; make room there."
            raise ExitError(ExitCode.USAGE, words) from error

    def _settle_crashed(self, claim: Claim) -> None:
        body = outbox.failure(None, Reason.WORKER_CRASHED, "the worker ended while it ran this task")
        if claim.lease:
            body["lease"] = claim.lease
        self._journal.settle(claim.id, outbox.FAIL, claim.eval_id, body, time.time())
        self._tell(outbox.failed(claim.eval_id, body, self._settings.worker_id, dt.datetime.now(dt.UTC)))
        self._log.error("task_failed", eval_id=claim.eval_id, reason=Reason.WORKER_CRASHED, error=body["error"])

    # Deliveries

    def _post_result(self, entry: Entry) -> None:
        self._queue.settle(entry.kind, entry.eval_id, entry.body)

    def _result_outcome(self, entry: Entry, outcome: Outcome, words: str) -> None:
        self._metrics.delivered(outcome)
        about = {"eval_id": entry.eval_id, "kind": entry.kind}
        if outcome is not Outcome.RETRY:
            refused = outcome is Outcome.KEY_REFUSED
            self._vitals.trouble("key", f"the queue refuses the key: it {words}" if refused else None)
        match outcome:
            case Outcome.ACCEPTED:
                self._log.info("result_delivered", **about)
            case Outcome.ALREADY_SETTLED:
                self._log.warning("result_already_settled", **about, answer=words)
            case Outcome.REJECTED:
                self._log.error("result_rejected", **about, answer=words, detail="kept among the dead letters")
            case Outcome.KEY_REFUSED:
                self._key.reload()
                self._log.error("result_key_refused", **about, answer=words)
            case Outcome.RETRY:
                self._log.warning("result_delivery_failed", **about, error=f"the queue {words}")

    def _tell(self, event: Event) -> None:
        """Put an event on its way. Events never stand in a task's way: what the disk does not take is dropped."""
        if self._bus is None:
            return
        try:
            self._journal.tell(event.kind, event.eval_id, dataclasses.asdict(event), time.time(), EVENT_LIMIT)
        except JournalError as error:
            self._log.warning("event_dropped", kind=event.kind, error=str(error))
        self._events.wake()

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

    # What port 8082 says

    def _health(self) -> HealthReport:
        stalled, troubles = self._vitals.stalled(), self._vitals.troubles()
        working = self._fleet.available()
        draining = ["draining"] if self._stages.drain.is_set() else []
        reasons = stalled + troubles + draining + ([] if working or troubles else ["no engine has been probed yet"])
        return HealthReport(ok=working and not stalled, ready=not reasons, reasons=reasons, body=self._body())

    def _body(self) -> Mapping[str, Any]:
        return {
            "worker_id": self._settings.worker_id,
            "version": __version__,
            "engines": {name: dataclasses.asdict(state) for name, state in self._fleet.states().items()},
            "queue_url": self._settings.queue_url,
            "last_poll_age_seconds": self._vitals.last_poll_age(),
            "draining": self._stages.drain.is_set(),
        }

    def _status(self) -> Mapping[str, Any]:
        report = self._health()
        return {
            **report.body,
            "reasons": report.reasons,
            "slots": self._vitals.slots(),
            "journal": self._journal.counts(),
            "recent": self._vitals.recent(),
        }

    def _render_metrics(self) -> tuple[str, bytes]:
        for state, count in self._journal.counts().items():
            self._metrics.journal(state, count)
        return self._metrics.render()


def _bus(settings: Settings, key: Callable[[], str]) -> Bus | None:
    """The event bus that a setting names; its libraries are imported only where it is used."""
    url = settings.event_bus_url or f"{settings.api_url}/events"
    if url == "none":
        return None
    if url.startswith("redis"):
        from crucible_worker.events.redis_pubsub import RedisPubSub

        return RedisPubSub(url)
    from crucible_worker.events.cloudevents import CloudEvents

    # The platform's key goes to the platform only.
    platform = url == settings.api_url or url.startswith(f"{settings.api_url}/")
    transport = composition.transport(settings, key if platform else str)
    return CloudEvents(url, transport, f"crucible-worker/{settings.worker_id}")
