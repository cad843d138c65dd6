"""What several commands put together in the same way: a fleet of engines and a transport, from settings."""

import uuid
from collections.abc import Callable

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import EngineState, Fleet
from crucible_worker.settings import Settings
from crucible_worker.transport import HttpTransport, tls_context


def fleet(settings: Settings, on_change: Callable[[str, EngineState], None] = lambda *_: None) -> Fleet:
    """The configured engines, none of them probed yet. Their sandboxes carry the worker's id and a boot id."""
    return Fleet(
        Daemon(settings.docker_host),
        engines=settings.engines,
        images=settings.images,
        fallback=settings.engine_fallback == "docker",
        limits=settings.limits(),
        labels={"crucible.worker": settings.worker_id, "crucible.boot": uuid.uuid4().hex},
        on_change=on_change,
    )


def transport(settings: Settings, api_key: Callable[[], str]) -> HttpTransport:
    """Outgoing HTTP with the configured certificates."""
    return HttpTransport(api_key, lambda: tls_context(settings.ca_file, settings.client_cert, settings.client_key))
