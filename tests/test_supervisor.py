"""What a service manager hears, over real datagram sockets."""

import os
import uuid

import pytest
from service_manager import ServiceManager

from crucible_worker.supervisor import EXTENSION_SECONDS, Supervisor

EXTENSION = f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS}000000"


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """Where a service manager listens; both kinds of address are in use."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@crucible-test-{uuid.uuid4().hex}"
    listening = ServiceManager(name)
    yield listening
    listening.close()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def supervisor(clock: Clock | None = None, **environ: str) -> tuple[Supervisor, list[str]]:
    troubles: list[str] = []
    return Supervisor(environ, troubles.append, clock or Clock()), troubles


def test_the_words_reach_the_manager(manager):
    ours, troubles = supervisor(NOTIFY_SOCKET=manager.name)
    ours.ready()
    ours.beat(lambda: "healthy;\n 1 of 2 slots busy", draining=False)
    assert manager.heard() == [["READY=1"], ["STATUS=healthy; 1 of 2 slots busy"]]
    assert troubles == []


def test_the_watchdog_is_fed_twice_in_its_time_and_no_oftener(manager):
    clock = Clock()
    ours, _ = supervisor(clock, NOTIFY_SOCKET=manager.name, WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
    fed = []
    for _ in range(16):
        ours.beat(lambda: "healthy", draining=False)
        fed += [clock.now for lines in manager.heard() if "WATCHDOG=1" in lines]
        clock.now += 0.5
    assert fed == [100, 102, 104, 106]


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(manager, watchdog):
    ours, _ = supervisor(NOTIFY_SOCKET=manager.name, **watchdog)
    ours.beat(lambda: "healthy", draining=False)
    assert manager.heard() == [["STATUS=healthy"]]


def test_a_stop_is_told_at_once_and_once_and_takes_the_time_it_needs(manager):
    clock = Clock()
    ours, _ = supervisor(clock, NOTIFY_SOCKET=manager.name)
    ours.beat(lambda: "healthy", draining=False)
    ours.beat(lambda: "draining", draining=True)
    ours.beat(lambda: "draining", draining=True)
    clock.now += 5
    ours.beat(lambda: "still draining", draining=True)
    assert manager.heard() == [
        ["STATUS=healthy"],
        ["STATUS=draining", "STOPPING=1", EXTENSION],
        ["STATUS=still draining", EXTENSION],
    ]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "notify"])
def test_without_a_socket_nothing_is_said(address):
    ours, troubles = supervisor(**({"NOTIFY_SOCKET": address} if address is not None else {}))
    ours.ready()
    ours.beat(lambda: pytest.fail("nobody asked"), draining=True)
    assert troubles == []


def test_a_manager_that_has_gone_or_does_not_listen_costs_one_word(tmp_path):
    ours, troubles = supervisor(NOTIFY_SOCKET=str(tmp_path / "gone"))
    ours.ready()
    ours.ready()
    assert troubles == ["[Errno 2] No such file or directory"]
    deaf = ServiceManager(str(tmp_path / "deaf"))
    ours, troubles = supervisor(NOTIFY_SOCKET=deaf.name)
    while not troubles:  # until its queue is full; that holds up nobody for long
        ours.ready()
    deaf.close()
    assert troubles == ["timed out"]
