"""Real sandboxes for tests: programs run in them, and what is left of them is found."""

import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from crucible_worker.engines.cgroups import Cgroups
from crucible_worker.engines.daemon import Daemon
from crucible_worker.engines.follow import Nobody
from crucible_worker.engines.prepared import Prepared
from crucible_worker.engines.runtimes import shares_kernel
from crucible_worker.engines.sandbox import Job, Sandboxes
from crucible_worker.engines.undertaker import Undertaker
from crucible_worker.model import Language, Limits, Run

# How many times longer code may take than here: on a machine that is emulated.
SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))


class Starts(Nobody):
    """Tells a callable of the start, and nobody of the rest."""

    def __init__(self, on_start) -> None:
        self.started = on_start


class Bench:
    """Runs programs in sandboxes of one runtime, each labelled so that what is left of them is found."""

    def __init__(self, daemon: Daemon, runtime: str, image: str) -> None:
        self.daemon = daemon
        self.runtime = runtime
        self.image = image
        self.labels = {"crucible.worker": f"test-{uuid.uuid4().hex}"}
        self.cgroups = Cgroups(self.labels["crucible.worker"], daemon.info, daemon.url)
        self.undertaker = Undertaker(daemon.close)
        self.troubles: list[str] = []
        self.warm = False
        self.plain = shares_kernel(runtime)
        self._sandboxes = self.sandboxes(self.cgroups)

    def sandboxes(self, cgroups) -> Sandboxes:
        """Sandboxes that are counted in these cgroups."""
        return Sandboxes(
            self.daemon, self.runtime, self.undertaker, cgroups, on_trouble=lambda _, words: self.troubles.append(words)
        )

    def __call__(
        self,
        code: str,
        stdin: str = "",
        *,
        cancel=None,
        on_start=lambda _: None,
        language=None,
        image="",
        args=(),
        files=None,
        **limits,
    ) -> Run:
        """Run one program; more keywords are limits."""
        language = language or Language(image or self.image)
        bounds = Limits(**limits | {"timeout_seconds": limits.get("timeout_seconds", 10.0) * SLOWNESS})
        job = Job(code, stdin, language, bounds, self.labels, tuple(args), files or {})
        prepared = self._prepared(language, bounds) if self.warm else None
        return self._sandboxes.run(job, cancel or threading.Event(), Starts(on_start), prepared)

    def _prepared(self, language: Language, limits: Limits) -> Prepared:
        prepared = self._sandboxes.prepare(language, limits, self.labels)
        assert prepared.is_up(30)
        return prepared

    def leave_the_loopback_to_the_runtime(self) -> None:
        """As the setting `loopback` does."""
        self._sandboxes.own_loopback = True

    def use(self, sandboxes: Sandboxes) -> None:
        """Run programs in these from now on."""
        self._sandboxes = sandboxes

    def all(self, *programs: str, stdin: str = "", **limits) -> list[Run]:
        """Run several programs side by side."""

        def run(code: str) -> Run:
            try:
                return self(code, stdin, **limits)
            finally:
                self.daemon.close()

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(run, programs))

    def left(self) -> list[str]:
        """The ids of sandboxes, and the cgroups, that are still there once those who end them are done."""
        assert self.undertaker.close(60)
        tree = self.cgroups._tree
        cgroups = tree.names(self.cgroups._prefix) if tree else set()
        return [container["Id"] for container in self.daemon.containers(self.labels)] + sorted(cgroups)

    def clear(self) -> None:
        for container in self.daemon.containers(self.labels):
            self.daemon.remove(container["Id"])
        self.cgroups.sweep()


@pytest.fixture(
    params=[pytest.param("runc", marks=pytest.mark.engine), pytest.param("runsc", marks=pytest.mark.engine)]
)
def runtime(request, engine_runtime) -> str:
    """The name of an OCI runtime: plain Docker's, and gVisor's."""
    return engine_runtime(request.param)


@pytest.fixture
def sandbox(daemon, runtime, sandbox_image) -> Iterator[Bench]:
    """Runs programs; afterwards nothing of them may be left."""
    bench = Bench(daemon, runtime, sandbox_image)
    yield bench
    left = bench.left()
    bench.clear()
    assert not left, "sandboxes are left"
    assert not bench.troubles
