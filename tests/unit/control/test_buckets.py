"""The bucket and the local rates of a process without Redis: pure, with any clock."""

import math

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.gatekeeping.buckets import SHARE, Alone, Bucket

RATES = st.sampled_from([0.1, 0.5, 1.0, 3.0, 30.0, 300.0])
STEPS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 400)), min_size=1, max_size=40)


def most(taken: list[tuple[float, int]], rate: float, burst: float) -> float:
    """By how much the worst of all windows exceeds ``rate`` times its length plus ``burst``."""
    return max(
        sum(count for at, count in taken[first : last + 1])
        - (taken[last][0] - taken[first][0]) * rate
        - burst
        for first in range(len(taken))
        for last in range(first, len(taken))
    )


@given(RATES, st.floats(0, 50), STEPS)
def test_over_no_window_a_bucket_gives_more_than_rate_and_burst(
    rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    """semantics §6: not more than the rate times the window, and one burst of at least 1."""
    bucket, at, taken = Bucket(rate, burst, 0.0), 0.0, []
    for pause, wanted in steps:
        at += pause
        got = min(wanted, bucket.fill(at))
        bucket.take(got)
        taken.append((at, got))
    assert most(taken, rate, max(1.0, burst)) <= 1e-3


@given(RATES, st.floats(1, 50), STEPS)
def test_what_is_told_to_wait_finds_a_token_and_not_before(
    rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    """semantics §6: ``retry_after`` is when the call may succeed, neither later nor earlier."""
    bucket, at = Bucket(rate, burst, 0.0), 0.0
    for pause, wanted in steps:
        at += pause
        bucket.take(min(wanted, bucket.fill(at)))
    bucket.take(bucket.fill(at))
    wait = bucket.dry()
    assert 0 < wait <= 1 / rate + 1e-3
    assert bucket.fill(at + wait * 0.99 - 1e-5 / rate) == 0
    assert bucket.fill(at + wait + 1e-9) == 1


def test_a_bucket_is_born_with_one_token_and_a_clock_that_goes_back_fills_nothing() -> None:
    """protocols §8: a bucket that does not exist starts with one token."""
    bucket = Bucket(10.0, 10.0, 100.0)
    assert bucket.fill(100.0) == 1
    bucket.take(1)
    assert bucket.fill(50.0) == 0
    assert bucket.fill(50.2) == 2


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2), st.integers(1, 50)), min_size=1, max_size=40))
def test_a_process_alone_creates_a_tenth_at_most(steps: list[tuple[float, int, int]]) -> None:
    """semantics §6: while Redis is away one process keeps to a tenth of the account's rate, and of each workflow's."""
    rates = (100.0, 20.0, 5.0)
    alone, at = Alone(300.0, 0.0), 0.0
    by_workflow: dict[int, list[tuple[float, int]]] = {0: [], 1: [], 2: []}
    everything = []
    for pause, workflow, wanted in steps:
        at += pause
        got, scarce = alone.take(f"w{workflow}", rates[workflow], wanted, at)
        assert 0 <= got <= wanted
        assert got == wanted or 0 < scarce.dry() < math.inf
        everything.append((at, got))
        by_workflow[workflow].append((at, got))
    assert most(everything, 300 * SHARE, 300 * SHARE) <= 1e-3
    for workflow, taken in by_workflow.items():
        if taken:
            assert most(taken, rates[workflow] * SHARE, max(1.0, rates[workflow] * SHARE)) <= 1e-3
