"""The pauses are bounded, whatever the failures and the dice."""

from hypothesis import given
from hypothesis import strategies as st

from crucible_worker import backoff

JITTER = st.floats(0, 1, exclude_max=True)
FAILURES = st.integers(1, 10_000)
SECONDS = st.floats(0.01, 3600)


@given(FAILURES, SECONDS, SECONDS, JITTER)
def test_a_poll_is_never_later_than_the_longest_pause(failures, step, longest, jitter):
    pause = backoff.poll_pause(failures, step, longest, jitter)
    assert 0 < pause <= longest
    assert pause >= min(step, longest) * 0.8


@given(FAILURES, SECONDS, SECONDS)
def test_more_failures_never_mean_a_shorter_pause(failures, step, longest):
    assert backoff.poll_pause(failures, step, longest, 0.5) <= backoff.poll_pause(failures + 1, step, longest, 0.5)


def test_the_documented_pauses():
    assert [backoff.poll_pause(n, 5, 30, 0) for n in range(1, 9)] == [5, 10, 15, 20, 25, 30, 30, 30]
    assert [backoff.delivery_pause(n, 0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@given(FAILURES, JITTER)
def test_a_delivery_is_tried_again_within_a_minute_for_ever(failures, jitter):
    assert 0.5 <= backoff.delivery_pause(failures, jitter) <= 60


@given(SECONDS, st.floats(0, 100), JITTER)
def test_a_queue_that_held_the_poll_has_done_the_waiting(interval, polled, jitter):
    pause = backoff.empty_pause(interval, polled, jitter)
    assert 0 <= pause <= 2 * interval
    assert polled < interval or pause == 0
