"""Each entry is said until it is taken or refused for good, at its own pace."""

import random
import threading

from hypothesis import given
from hypothesis import strategies as st

from crucible_worker.delivery import Delivery, Outcome
from crucible_worker.errors import AlreadySettledError, JournalError, KeyRefusedError, RejectedError, RetryError
from crucible_worker.journal import DEAD, RESULTS, Journal


class House:
    """A journal in memory, a delivery by a clock of ours, and a peer that answers as told."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.journal = Journal.of("memory")
        self.answers: dict[str, list[Exception | None]] = {}
        self.sent: list[str] = []
        self.outcomes: list[tuple[str, Outcome]] = []
        self.delivery = Delivery(
            self.journal, RESULTS, self._send,
            lambda entry, outcome, _: self.outcomes.append((entry.eval_id, outcome)),
            clock=lambda: self.now, jitter=lambda: 0.0,
        )  # fmt: skip
        for name in names:
            self.put(name)

    def put(self, name: str) -> None:
        self.journal.settle(0, "complete", name, {}, 0.0)

    def _send(self, entry) -> None:
        self.sent.append(entry.eval_id)
        answer = self.answers.get(entry.eval_id, [])
        error = answer.pop(0) if answer else None
        if error is not None:
            raise error


def test_what_is_taken_is_forgotten_in_order():
    house = House("a", "b", "c")
    house.delivery.turn()
    assert house.sent == ["a", "b", "c"]
    assert house.delivery.empty()


def test_a_stubborn_one_does_not_block_the_others():
    house = House("stubborn", "other")
    house.answers["stubborn"] = [RetryError("is away")] * 3
    assert house.delivery.turn() == 1.0
    assert house.outcomes == [("stubborn", Outcome.RETRY), ("other", Outcome.ACCEPTED)]
    for pause in (1.0, 2.0, 4.0):
        house.now += pause - 0.1
        house.delivery.turn()
        assert house.sent.count("stubborn") == len([o for o in house.outcomes if o[0] == "stubborn"])
        house.now += 0.1
        house.delivery.turn()
    assert house.delivery.empty()
    assert house.sent.count("stubborn") == 4


def test_a_peer_that_asks_for_time_gets_it():
    house = House("a")
    house.answers["a"] = [RetryError("is busy", retry_after=37.0)]
    assert house.delivery.turn() == 37.0


def test_a_refusal_for_good_is_a_dead_letter():
    house = House("a")
    house.answers["a"] = [RejectedError("answered 422")]
    house.delivery.turn()
    assert house.delivery.empty()
    assert house.journal.entry(house.journal.pending(DEAD)[0]).answer == "answered 422"


def test_somebody_else_settled_it_is_good_enough():
    house = House("a")
    house.answers["a"] = [AlreadySettledError("answered 404")]
    house.delivery.turn()
    assert house.delivery.empty()
    assert house.outcomes == [("a", Outcome.ALREADY_SETTLED)]


def test_a_refused_key_and_a_defect_of_ours_keep_the_entry():
    house = House("a")
    house.answers["a"] = [KeyRefusedError("answered 401"), ZeroDivisionError("oops")]
    house.delivery.turn()
    house.now += 1000
    house.delivery.turn()
    assert not house.delivery.empty()
    house.now += 1000
    house.delivery.turn()
    assert house.delivery.empty()


def test_hope_makes_all_due_at_once():
    house = House("a", "b")
    house.answers = {name: [RetryError("is away", retry_after=300.0)] for name in "ab"}
    house.delivery.turn()
    house.delivery.turn()
    assert house.sent == ["a", "b"]
    house.delivery.hurry()
    house.delivery.turn()
    assert house.delivery.empty()


def test_one_that_was_dropped_by_hand_is_forgotten():
    house = House("a")
    house.answers["a"] = [RetryError("is away")] * 9
    house.delivery.turn()
    house.journal.done(house.journal.pending(RESULTS)[0])
    assert house.delivery.turn() > 1.0
    assert house.sent == ["a"]


def test_a_journal_that_cannot_be_read_is_tried_again():
    house = House("a")
    failing = threading.Event()
    pending = house.journal.pending

    def broken(lane):
        if not failing.is_set():
            failing.set()
            house.delivery.wake()
            raise JournalError("disk I/O error")
        return pending(lane)

    house.journal.pending = broken
    stop = threading.Event()
    thread = threading.Thread(target=house.delivery.run, args=(stop,))
    thread.start()
    while not house.sent:
        failing.wait(1)
    stop.set()
    house.delivery.wake()
    thread.join(60)
    assert house.sent == ["a"]


FAULTS = st.sampled_from([None, RetryError("x"), KeyRefusedError("x"), RetryError("x", 5.0), ValueError("x")])


@given(st.lists(st.lists(FAULTS, max_size=6), min_size=1, max_size=6), st.integers())
def test_whatever_the_peer_does_each_is_taken_exactly_once(faults, seed):
    names = [str(number) for number in range(len(faults))]
    house = House(*names)
    house.answers = {name: [*answers] for name, answers in zip(names, faults, strict=True)}
    dice = random.Random(seed)
    for _ in range(200):
        house.now += dice.uniform(0, 61)
        house.delivery.turn()
    assert house.delivery.empty()
    accepted = [name for name, outcome in house.outcomes if outcome is Outcome.ACCEPTED]
    assert sorted(accepted) == sorted(names)
    house.journal.close()
