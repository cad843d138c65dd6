"""Signals to stages to exit codes, with threads that really wait."""

import signal
import threading

import pytest

from crucible_worker.errors import ExitCode
from crucible_worker.lifecycle import CANCEL_SECONDS, DELIVER_SECONDS, Lifecycle, Stages, thread_dump


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **_: object) -> None:
        self.events.append(event)

    error = info


class House:
    """A lifecycle whose signals come when they are due, and whose clock goes on a second with each look for one."""

    def __init__(self, script, *, undelivered=0, durable=True, drain_timeout=0.0, needs=("drain",), stalled=()) -> None:
        """`script` is what each second brings: a signal or None; the end of it repeats None.

        `needs` are the stages after which the slot ends, None for never; `undelivered` seconds pass until
        all is delivered.
        """
        self.now = 0.0
        self.script = list(script)
        self.stages = Stages()
        self.log = Log()
        self.reloads = 0
        self.beats: list[float] = []
        self.stalled = list(stalled)
        self._release = threading.Event()
        self._needs = needs
        slot = threading.Thread(target=self._release.wait, daemon=True)
        slot.start()
        self._delivered_at = undelivered
        self.lifecycle = Lifecycle(
            stages=self.stages, slots=[slot], delivered=lambda: self.now >= self._delivered_at, durable=durable,
            drain_timeout=drain_timeout, stalled=lambda: self.stalled if self.now > 5 else [], reload=self._reload,
            beat=lambda: self.beats.append(self.now), log=self.log, wait_signal=self._wait, clock=lambda: self.now,
        )  # fmt: skip
        self.slot = slot

    def _reload(self) -> None:
        self.reloads += 1

    def _wait(self, _seconds: float) -> int | None:
        self.now += 1
        if self._needs is not None and all(getattr(self.stages, name).is_set() for name in self._needs):
            self._release.set()
            self.slot.join()
        return self.script.pop(0) if self.script else None


TERM, INT, QUIT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP


@pytest.mark.parametrize("first", [TERM, INT])
def test_one_signal_drains(first):
    house = House([None, first])
    assert house.lifecycle.watch() == ExitCode.OK
    assert not house.stages.cancel.is_set()


def test_two_cancel_and_so_does_quit():
    for script in ([TERM, TERM], [INT, TERM], [QUIT]):
        house = House(script, needs=("cancel",))
        assert house.lifecycle.watch() == ExitCode.OK


@pytest.mark.parametrize("script", [[TERM, TERM, TERM], [QUIT, TERM], [TERM, QUIT, INT]])
def test_three_exit_at_once(script):
    house = House(script, needs=None)
    assert house.lifecycle.watch() == ExitCode.INTERRUPTED
    assert house.now <= len(script) + 1


def test_hup_reloads_and_goes_on():
    house = House([HUP, HUP, TERM])
    assert house.lifecycle.watch() == ExitCode.OK
    assert house.reloads == 2


def test_a_stall_is_70_before_and_during_a_drain():
    for script in ([], [TERM]):
        house = House(script, stalled=["slot 1 has been polling for 99 s"], needs=("cancel",))
        assert house.lifecycle.watch() == ExitCode.STALLED
        assert "worker_stalled" in house.log.events


def test_a_drain_that_takes_too_long_cancels():
    house = House([TERM], drain_timeout=20.0, needs=("cancel",))
    assert house.lifecycle.watch() == ExitCode.OK
    assert "drain_timeout" in house.log.events


def test_a_task_that_cannot_be_ended_does_not_keep_the_worker():
    """Its daemon hangs: the journal has the claim."""
    house = House([QUIT], needs=None, undelivered=10_000)
    assert house.lifecycle.watch() == ExitCode.UNDELIVERED
    assert house.now <= CANCEL_SECONDS + DELIVER_SECONDS + 5


def test_results_on_disk_are_waited_for_a_while_only():
    house = House([TERM], undelivered=5)
    assert house.lifecycle.watch() == ExitCode.OK
    house = House([TERM], undelivered=1000)
    assert house.lifecycle.watch() == ExitCode.UNDELIVERED
    assert house.now <= DELIVER_SECONDS + 5


def test_results_in_memory_are_waited_for_until_told_otherwise():
    house = House([TERM], undelivered=500, durable=False)
    assert house.lifecycle.watch() == ExitCode.OK
    assert house.now >= 500
    house = House([TERM, None, None, None, TERM], undelivered=500, durable=False)
    assert house.lifecycle.watch() == ExitCode.UNDELIVERED
    assert house.now < 10


def test_it_beats_to_the_end_of_a_drain():
    house = House([None, TERM, None, None, TERM], needs=("cancel",), undelivered=9)
    assert house.lifecycle.watch() == ExitCode.OK
    assert set(range(1, 9)) <= set(house.beats)


def test_a_stalled_worker_does_not_beat():
    for script in ([], [TERM]):
        house = House(script, stalled=["slot 1 has been polling for 99 s"], needs=("cancel",))
        house.lifecycle.watch()
        assert house.beats == [1, 2, 3, 4, 5]


def test_a_dump_names_the_threads_and_where_they_are():
    assert any(line.startswith("MainThread: ") and "test_lifecycle" not in line[:12] for line in thread_dump())
