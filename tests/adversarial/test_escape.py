"""No way out of a sandbox, on either runtime, and nothing of one task is left for the next."""

import pytest


@pytest.mark.parametrize(
    ("warm", "own_loopback"), [(False, False), (True, False), (False, True)], ids=["cold", "warm", "own loopback"]
)
def test_every_way_out_is_shut(sandbox, host, warm, own_loopback):
    """Twice: the first leaves files wherever it may write, and the second must not find them."""
    sandbox.warm = warm
    if own_loopback:
        sandbox.leave_the_loopback_to_the_runtime()
    assert host.weaknesses(sandbox) == {}
    assert host.weaknesses(sandbox) == {}
