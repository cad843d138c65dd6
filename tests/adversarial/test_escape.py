"""No way out of a sandbox, on either runtime, and nothing of one task is left for the next."""


def test_every_way_out_is_shut(sandbox, host):
    """Twice: the first leaves files wherever it may write, and the second must not find them."""
    assert host.weaknesses(sandbox) == {}
    assert host.weaknesses(sandbox) == {}
