"""The composition root of `run`: every adapter is made here, and handed to those that declared what they need."""

import datetime as dt
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_worker import __version__, lifecycle, outbox
from crucible_worker.admission import Admission, Bounds
from crucible_worker.cli import composition, deliveries
from crucible_worker.cli.report import Report
from crucible_worker.cli.upkeep import Upkeep
from crucible_worker.engines.fleet import EngineState
from crucible_worker.errors import ExitCode, ExitError, JournalError
from crucible_worker.evaluation import Evaluations
from crucible_worker.journal import RESULTS, Claim, Journal
from crucible_worker.leases import Leases
from crucible_worker.livelogs import LiveLogs, Silence
from crucible_worker.model import Reason
from crucible_worker.observe import logs
from crucible_worker.observe.access import Access, ServerTls
from crucible_worker.observe.masking import Mask
from crucible_worker.observe.metrics import Metrics
from crucible_worker.observe.server import HealthServer
from crucible_worker.queues.http import HttpQueue
from crucible_worker.recovery import settle_earlier
from crucible_worker.settings import Loaded, Settings
from crucible_worker.settlement import Settlement
from crucible_worker.statefile import MEMORY
from crucible_worker.supervisor import Supervisor
from crucible_worker.transcript import Transcripts
from crucible_worker.vitals import Vitals
from crucible_worker.worker import Pace, Worker

_CANARY_SECONDS = 20.0
_LAST_WORDS_SECONDS = 5.0


class Service:
    """One worker process."""

    def __init__(self, loaded: Loaded, environ: Mapping[str, str]) -> None:
        """Raises ExitError where a setting cannot be used: a state directory, an address, a certificate."""
        settings = self._settings = loaded.settings
        self._key = composition.KeptSecret(loaded, "api_key")
        self._health_token = composition.KeptSecret(loaded, "health_token")
        logs.configure(settings.worker_id, settings.log_format, settings.log_level, self._secrets)
        self._log = logs.get_logger()
        self._supervisor = Supervisor(
            environ, lambda error: self._log.warning("service_manager_unreachable", error=error)
        )
        self._boot_id = uuid.uuid4().hex
        self._vitals = Vitals()
        self._metrics = Metrics(
            engines=tuple(settings.engines), slots=settings.concurrency, version=__version__,
        )  # fmt: skip
        self._stages = lifecycle.Stages()
        self._stop = threading.Event()
        self._transport = composition.transport(settings, self._key)
        self._journal = Journal.of(settings.state_dir)
        self._durable = settings.state_dir != MEMORY
        self._transcripts = Transcripts(Path(settings.state_dir) / "transcripts" if self._durable else None)
        self._fleet = composition.fleet(
            settings, self._boot_id, self._engine_changed, self._log.warning, settings.warm * settings.concurrency
        )
        self._upkeep = self._make_upkeep()
        self._queue = HttpQueue(
            self._transport,
            settings.queue_url,
            wait=settings.poll_wait,
            engines=tuple(settings.engines),
            languages=tuple(settings.languages),
        )
        self._leases = Leases(self._queue, self._stages.cancel, self._log, settings.cancel_poll)
        self._deliveries = deliveries.Deliveries(
            journal=self._journal, queue=self._queue, bus=deliveries.bus(settings, self._key), leases=self._leases,
            vitals=self._vitals, metrics=self._metrics, reload_key=self._key.reload, log=self._log,
        )  # fmt: skip
        sink = deliveries.live_sink(settings, self._queue)
        dropped = self._metrics.live_log_dropped
        self._live = LiveLogs(sink, settings.worker_id, self._log, dropped) if sink else None
        self._worker = self._make_worker(settings)
        self._report = Report(
            settings, vitals=self._vitals, fleet=self._fleet, stages=self._stages, journal=self._journal,
            metrics=self._metrics, mask=Mask(self._secrets),
        )  # fmt: skip
        self._tls = ServerTls(settings.health_cert, settings.health_key) if settings.health_cert else None

    def _make_upkeep(self) -> Upkeep:
        return Upkeep(
            fleet=self._fleet,
            journal=self._journal,
            docker_host=self._settings.docker_host,
            worker_id=self._settings.worker_id,
            boot=self._boot_id,
            interval=self._settings.engine_probe_interval,
            vitals=self._vitals,
            metrics=self._metrics,
            log=self._log,
        )

    def _make_worker(self, settings: Settings) -> Worker:
        admission = Admission(
            load=self._journal.load,
            free=self._free_bytes,
            bounds=Bounds(settings.journal_size, settings.journal_entries, settings.journal_age, settings.disk_reserve),
            engines=self._upkeep.may_claim,
            clock=time.time,
            vitals=self._vitals,
            log=self._log,
        )
        settlement = Settlement(
            worker_id=settings.worker_id,
            record=self._journal,
            tell=self._deliveries.tell,
            deliver=self._deliveries.results.wake,
            say=self._queue.settle,
            vitals=self._vitals,
            metrics=self._metrics,
            log=self._log,
            shutdown=self._stages.cancel,
        )
        evaluations = Evaluations(
            worker_id=settings.worker_id,
            engines=self._fleet,
            record=self._journal,
            transcripts=self._transcripts,
            live=self._live or Silence(),
            leases=self._leases,
            settlement=settlement,
            tell=self._deliveries.tell,
            limits=settings.limits(),
            timeout_max=settings.timeout_max,
            vitals=self._vitals,
            metrics=self._metrics,
            log=self._log,
            task_context=logs.task_context,
        )
        return Worker(
            queue=self._queue,
            evaluations=evaluations,
            may_claim=admission.may_claim,
            reload_key=self._key.reload,
            pace=Pace(settings.poll_interval, settings.poll_backoff, settings.poll_backoff_max),
            vitals=self._vitals,
            metrics=self._metrics,
            log=self._log,
        )

    def run(self) -> int:
        """Work until told to stop. Returns the exit code."""
        settings = self._settings
        with HealthServer(
            settings.health_address,
            health=self._report.health, status=self._report.status, metrics=self._report.metrics,
            page=self._report.page, access=Access(self._health_token), tls=self._tls,
            on_error=lambda path, error: self._log.error("health_endpoint_failed", path=path, error=repr(error)),
        ) as server:  # fmt: skip
            self._log.info(
                "worker_started", version=__version__, queue_url=settings.queue_url, health_port=server.port,
                engines=dict(settings.engines), concurrency=settings.concurrency, state_dir=settings.state_dir,
            )  # fmt: skip
            if not self._durable:
                self._log.warning("journal_in_memory", detail="a crash loses results that are not delivered yet")
            if self._journal.set_aside:
                self._log.error("journal_set_aside", detail=self._journal.set_aside)
            self._take_over()
            self._start("results", self._deliveries.results.run, self._stop)
            self._start("events", self._deliveries.events.run, self._stop)
            self._start("leases", self._leases.run, self._stop)
            live = self._start("live-logs", self._live.run, self._stop) if self._live else None
            upkeep = self._start("upkeep", self._upkeep.run, self._stop)
            warmth = self._start("warmth", self._fleet.warmth.run, self._stages.drain)
            slots = [self._start(f"slot-{n}", self._worker.run, n, self._stages.drain) for n in self._slot_numbers()]
            self._supervisor.ready()
            code = self._watch(slots)
            self._stop.set()
            self._upkeep.wake()
            if self._live and live:
                self._live.wake()
                live.join(_LAST_WORDS_SECONDS)
            if code not in {ExitCode.INTERRUPTED, ExitCode.STALLED}:
                # A canary that runs now takes its sandbox away before we go.
                upkeep.join(_CANARY_SECONDS)
                self._fleet.warmth.wake()
                warmth.join(_CANARY_SECONDS)
                self._fleet.close(_CANARY_SECONDS)
            self._log.info("worker_stopped", exit_code=code, undelivered=self._undelivered())
        return code

    def _secrets(self) -> set[str]:
        urls = (self._settings.event_bus_url, self._settings.live_logs)
        passwords = {urllib.parse.urlsplit(url).password or "" for url in urls} - {""}
        return self._key.all() | self._health_token.all() | passwords

    def _slot_numbers(self) -> range:
        return range(1, self._settings.concurrency + 1)

    def _free_bytes(self) -> int | None:
        if not self._durable:
            return None
        disk = os.statvfs(self._settings.state_dir)
        return disk.f_bavail * disk.f_frsize

    def _undelivered(self) -> int | None:
        try:
            return len(self._journal.pending(RESULTS)) + len(self._journal.claims())
        except JournalError:
            return None

    def _watch(self, slots: list[threading.Thread]) -> int:
        code = lifecycle.Lifecycle(
            stages=self._stages,
            slots=slots,
            delivered=lambda: self._undelivered() == 0,
            durable=self._durable,
            drain_timeout=self._settings.drain_timeout,
            stalled=self._vitals.stalled,
            reload=self._reload,
            beat=self._beat,
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
        self._health_token.reload()
        try:
            self._transport.reload()
            if self._tls is not None:
                self._tls.reload()
        except ExitError as error:
            self._log.error("reload_failed", error=str(error))
        self._deliveries.results.hurry()

    def _beat(self) -> None:
        self._supervisor.beat(self._report.headline, draining=self._stages.drain.is_set())

    def _engine_changed(self, name: str, state: EngineState) -> None:
        self._metrics.engine_available(name, state.available)
        if state.available:
            self._log.info("engine_available", engine=name, runtime=state.runtime)
        else:
            self._log.warning("engine_unavailable", engine=name, runtime=state.runtime, error=state.detail)
            self._upkeep.wake()

    def _take_over(self) -> None:
        """Settle what earlier lives of this worker have left open, or give it to the slots."""
        try:
            self._journal.begin(self._boot_id)
            running = settle_earlier(self._journal, self._settled_earlier)
        except JournalError as error:
            words = f"the state directory {self._settings.state_dir} cannot be written: {error}; make room there."
            raise ExitError(ExitCode.USAGE, words) from error
        self._transcripts.keep_only([claim.id for claim in running])
        self._worker.take_over(running)

    def _settled_earlier(self, claim: Claim, kind: str, body: Mapping[str, Any], reason: Reason) -> None:
        if kind == outbox.RELEASE:
            self._log.warning("task_released", eval_id=claim.eval_id, reason=reason)
            return
        now = dt.datetime.now(dt.UTC)
        self._deliveries.tell(outbox.failed(claim.eval_id, body, self._settings.worker_id, now))
        self._log.error("task_failed", eval_id=claim.eval_id, reason=reason, error=body["error"])
