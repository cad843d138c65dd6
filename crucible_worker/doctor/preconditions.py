"""Every precondition of a worker, in the order in which one rests on the other."""

import datetime as dt
import ssl
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import crucible_worker
from crucible_worker.doctor import engine, host, network, peers
from crucible_worker.doctor.checks import ENGINE, Check, Finding, passed
from crucible_worker.engines.fleet import Fleet
from crucible_worker.settings import Loaded
from crucible_worker.transport import HttpTransport, proxy_of, tls_context

CANARY_SECONDS = 60.0
CERTIFICATES = "CRUCIBLE_CA_FILE, CRUCIBLE_CLIENT_CERT and CRUCIBLE_CLIENT_KEY"


def preconditions(loaded: Loaded, fleet: Fleet, labels: Mapping[str, str], program: str) -> list[Check]:
    """The checks of a host, its engines, its queue and its event bus.

    `fleet` makes sandboxes with `labels` for canaries. `program` is the path that was started.
    """
    settings = loaded.settings
    own = [
        Check("python", host.python),
        Check("unpack directory", partial(host.unpacked, program, Path(crucible_worker.__file__).parent)),
        Check("state directory", partial(host.state, settings.state_dir), mend="its disk or network share hangs"),
        Check("disk", partial(host.disk, settings.state_dir, settings.disk_reserve), ("state directory",)),
        Check("clock", lambda: host.clock(dt.datetime.now(dt.UTC))),
        Check("health address", partial(host.address, settings.health_address)),
    ]
    return own + _engine(loaded, fleet, labels) + _queue(loaded) + _bus(loaded)


def _engine(loaded: Loaded, fleet: Fleet, labels: Mapping[str, str]) -> list[Check]:
    settings = loaded.settings
    ask = engine.EngineChecks(settings.docker_host, fleet, pull=settings.pull, allowed=settings.images_allowed)
    images = [
        Check(f"image {name}", partial(ask.image, name, language), ("docker API",), mend=engine.HUNG)
        for name, language in settings.languages.items()
    ]
    # The canary speaks the first language.
    canaries = [
        Check(ENGINE + name, partial(ask.canary, name, runtime), (images[0].name,), CANARY_SECONDS, engine.HUNG)
        for name, runtime in settings.engines.items()
    ]
    return [
        Check("docker socket", partial(engine.reachable, settings.docker_host), mend=engine.HUNG),
        Check("docker engine", ask.answers, ("docker socket",), mend=engine.HUNG),
        Check("docker API", ask.api, ("docker engine",), mend=engine.HUNG),
        Check("docker clock", ask.clock, ("docker engine",), mend=engine.HUNG),
        Check("docker disk", ask.room, ("docker engine",), mend=engine.HUNG),
        *images,
        *canaries,
        Check("sandboxes left", partial(ask.swept, labels), ("docker engine",), CANARY_SECONDS),
    ]


def _queue(loaded: Loaded) -> list[Check]:
    settings = loaded.settings
    peer = network.Peer(settings.queue_url, "QUEUE_SERVICE_URL")
    context = partial(tls_context, settings.ca_file, settings.client_cert, settings.client_key)

    @cache
    def ask() -> peers.QueueChecks:
        """Made when first needed: by then the certificates are known to be readable."""
        transport = HttpTransport(settings.api_key.reveal, context)
        return peers.QueueChecks(peer, transport, loaded.sources["api_key"], has_key=bool(settings.api_key))

    away = f"it may be overloaded, or not be a queue: read its log, or {peer.mend()}"
    return [
        Check("certificates", partial(_certificates, context), mend=f"correct or unset {CERTIFICATES}"),
        Check("queue proxy", partial(network.proxy, peer)),
        Check("queue name", partial(network.name, peer), mend="the name servers in /etc/resolv.conf do not answer"),
        Check("queue connection", partial(network.connection, peer), ("queue name",)),
        Check("queue TLS", lambda: network.handshake(peer, context()), ("certificates", "queue connection"), mend=away),
        Check("queue answer", lambda: ask().answer(), _needed(peer), 25.0, away),
        Check("queue key", lambda: ask().key(), ("queue answer",), mend=away),
        Check("queue clock", lambda: ask().clock(), ("queue answer",)),
    ]


def _needed(peer: network.Peer) -> tuple[str, ...]:
    """A handshake that is skipped, for http or a proxy, keeps nobody from asking."""
    direct = peer.url.startswith("https:") and not proxy_of(peer.url)
    return ("certificates", "queue connection", *(("queue TLS",) if direct else ()))


def _bus(loaded: Loaded) -> list[Check]:
    settings = loaded.settings
    url = settings.event_bus_url or f"{settings.api_url}/events"
    context = partial(tls_context, settings.ca_file, settings.client_cert, settings.client_key)
    # Without the key, which not every bus is to see.
    act = lambda: peers.bus(url, HttpTransport(context=context), implied=not settings.event_bus_url)  # noqa: E731
    return [Check("event bus", act, ("certificates",), mend="set EVENT_BUS_URL to one that answers, or to none")]


def _certificates(context: Callable[[], ssl.SSLContext]) -> Finding:
    trusted = context().cert_store_stats()["x509_ca"]
    return passed(f"{trusted} authorities are trusted")
