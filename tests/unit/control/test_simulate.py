"""What the simulation of the policy is there to show, at a small size."""

from bench import simulate


def test_small_workflows_hardly_notice_a_flood() -> None:
    """semantics §6: a flood on one workflow does not delay another by more than one cycle: with the policy, and without
    it by far more; and no slot is left free for that."""
    fair, first = (simulate.flooded(3, is_fair, 8.0, 1) for is_fair in (True, False))
    assert fair["p99"] < 2 * simulate.CYCLE_S
    assert fair["p50"] < 0.1
    assert first["p99"] > 2 * simulate.CYCLE_S
    assert fair["used"] > 0.95


def test_shares_are_even_and_limits_hold() -> None:
    """semantics §6: max-min between workflows and shards; a workflow's own limit holds beside that of the account."""
    found = simulate.contended(3, 8.0, 1)
    assert found["between_workflows"] > 0.98
    assert found["between_shards"] > 0.9
    assert found["most_of_the_limited"] == 5
    assert found["used"] > 0.95


def test_figures() -> None:
    """design §5: the figures themselves: Jain's index from 1/n to 1, percentiles that were measured."""
    assert simulate.jain([3, 3, 3]) == 1
    assert simulate.jain([0, 0, 9]) == 1 / 3
    assert simulate.jain([]) == 1
    assert simulate.percentile([4, 1, 3, 2], 0.5) == 3
    assert simulate.percentile([], 0.99) == 0
