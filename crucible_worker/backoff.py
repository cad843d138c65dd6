"""How long to wait after failures. Pure: the jitter is passed in, a number from 0 to 1."""


def poll_pause(failures: int, step: float, longest: float, jitter: float) -> float:
    """Seconds before the next poll after `failures` failed ones: one more step each, up to `longest`.

    Jitter takes away up to a fifth, so that workers spread out and none is ever later than `longest`.
    """
    return min(step * failures, longest) * (1 - jitter / 5)


def delivery_pause(failures: int, jitter: float, longest: float = 60.0) -> float:
    """Seconds before a delivery is tried again: 1, 2, 4 … up to `longest`, less up to a half of it by jitter."""
    return float(min(2 ** min(failures - 1, 10), longest)) * (1 - jitter / 2)


def empty_pause(interval: float, polled: float, jitter: float) -> float:
    """Seconds before the next poll after an empty one that took `polled` seconds: what is left of the interval.

    A queue that held the poll open has done the waiting already. Jitter adds up to the same again.
    """
    return 0.0 if polled >= interval else interval * (1 + jitter) - polled
