from collections import Counter

import pytest
from fault_proxy import Proxy
from scene import Scene

from crucible_worker.embedded import store

_survived: Counter = Counter()


@pytest.fixture
def survived():
    """Counts faults that left everything as it must be."""
    return _survived


@pytest.fixture(autouse=True)
def impatient_queue(monkeypatch):
    """A task whose claim got lost on its way is given again soon."""
    monkeypatch.setattr(store, "GRACE_SECONDS", 0.5)


@pytest.fixture
def scene(daemon, sandbox_image):
    made = Scene()
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter):
    if Proxy.injected:
        injected, survived = sum(Proxy.injected.values()), sum(_survived.values())
        terminalreporter.write_line(f"faults injected: {injected}, survived: {survived}")
        if terminalreporter.config.option.verbose > 0:
            for name, count in sorted(Proxy.injected.items()):
                terminalreporter.write_line(f"  {count:>4} {name}")
