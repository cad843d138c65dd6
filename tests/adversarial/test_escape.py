"""No way out of a sandbox, on either runtime, and nothing of one task is left for the next."""

import pytest


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_every_way_out_is_shut(sandbox, host, warm):
    """Twice: the first leaves files wherever it may write, and the second must not find them."""
    sandbox.warm = warm
    assert host.weaknesses(sandbox) == {}
    assert host.weaknesses(sandbox) == {}
