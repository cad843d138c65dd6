"""What is stalled, what keeps from being ready, and what was said once."""

from crucible_worker.vitals import Vitals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_slot_is_stalled_when_it_has_not_moved_in_its_time():
    clock = Clock()
    vitals = Vitals(clock)
    vitals.expect(1, "polling", 30)
    clock.now += 30
    assert vitals.stalled() == []
    clock.now += 1
    assert vitals.stalled() == ["slot 1 has been polling for 31 s"]
    vitals.expect(1, "running", 300, "task", "docker")
    assert vitals.stalled() == []
    vitals.leave(1)
    clock.now += 1000
    assert vitals.stalled() == []


def test_what_has_collapsed_stays_so():
    vitals = Vitals(Clock())
    vitals.collapsed("the thread results has died")
    assert vitals.stalled() == ["the thread results has died"]


def test_a_trouble_is_news_when_it_comes_and_when_it_goes():
    vitals = Vitals(Clock())
    assert vitals.trouble("queue", "the queue is away")
    assert not vitals.trouble("queue", "the queue is still away")
    assert vitals.troubles() == ["the queue is still away"]
    assert vitals.has_trouble("queue")
    assert vitals.trouble("queue", None)
    assert not vitals.trouble("queue", None)
    assert vitals.troubles() == []


def test_what_is_said_once_is_said_once():
    vitals = Vitals(Clock())
    assert vitals.first_time("that")
    assert not vitals.first_time("that")


def test_the_last_poll_and_the_slots_are_told_in_seconds():
    clock = Clock()
    vitals = Vitals(clock)
    assert vitals.last_poll_age() is None
    vitals.polled()
    vitals.expect(2, "running", 10, "task", "docker")
    clock.now += 2.5
    assert vitals.last_poll_age() == 2.5
    assert vitals.slots() == [{"slot": 2, "doing": "running", "seconds": 2.5, "eval_id": "task", "engine": "docker"}]


def test_only_the_last_verdicts_are_kept():
    vitals = Vitals(Clock())
    for number in range(100):
        vitals.finished({"n": number})
    assert [note["n"] for note in vitals.recent()] == list(range(99, 79, -1))
