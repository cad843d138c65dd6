"""What several commands put together in the same way: a fleet of engines and a transport, from settings."""

from collections.abc import Callable

from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.fleet import EngineState, Fleet
from crucible_worker.errors import ExitError
from crucible_worker.secret import Secret
from crucible_worker.settings import Loaded, Settings, read_secret
from crucible_worker.transport import HttpTransport, tls_context


class KeptSecret:
    """A secret among the settings. Called, it tells it; one from a file may be read again."""

    def __init__(self, loaded: Loaded, name: str) -> None:
        self._name = name
        self._secret: Secret = getattr(loaded.settings, name)
        self._file = loaded.secret_files.get(name)
        self._seen = {self._secret.reveal()} - {""}

    def __call__(self) -> str:
        """The secret as it was last read; empty where there is none."""
        return self._secret.reveal()

    def all(self) -> set[str]:
        """Every one there has been, to be masked in logs."""
        return self._seen

    def reload(self) -> None:
        """Read the file again. One that cannot be read leaves the secret as it was: it may be on its way."""
        if self._file is None:
            return
        try:
            self._secret = Secret(read_secret(self._file, f"the file of {self._name}"))
        except ExitError:
            return
        self._seen = self._seen | {self._secret.reveal()} - {""}


def fleet(
    settings: Settings,
    boot_id: str = "exec",
    on_change: Callable[[str, EngineState], None] = lambda *_: None,
    on_trouble: Callable[..., None] = lambda *_, **__: None,
    warm: int = 0,
) -> Fleet:
    """The configured engines, none of them probed yet. Their sandboxes carry the worker's id and this boot id."""
    return Fleet(
        Daemon(settings.docker_host),
        engines=settings.engines,
        languages=settings.languages,
        fallback=settings.engine_fallback == "docker",
        limits=settings.limits(),
        labels={"crucible.worker": settings.worker_id, "crucible.boot": boot_id},
        pull=settings.pull == "missing",
        images_allowed=settings.images_allowed,
        own_loopback=settings.loopback == "runtime",
        on_change=on_change,
        on_trouble=on_trouble,
        warm=warm,
    )


def transport(settings: Settings, api_key: Callable[[], str]) -> HttpTransport:
    """Outgoing HTTP with the configured certificates."""
    made = HttpTransport(api_key, lambda: tls_context(settings.ca_file, settings.client_cert, settings.client_key))
    if settings.ca_file or settings.client_cert:
        made.reload()
    return made
