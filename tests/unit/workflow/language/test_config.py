from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidConfig, InvalidName
from orchestrator.workflow.language.config import Retries, RollbackPolicy, StepConfig, WaitConfig, backoff_s
from orchestrator.workflow.language.durations import MAX_SECONDS


def test_defaults():
    """API §2: five retries, 10 seconds, exponential; 10 minutes per attempt; 24 hours for an event."""
    config = StepConfig.build()
    assert config == StepConfig(5, 10.0, "exponential", None, 0.0, 600.0, False, None)
    assert config.retries() == Retries(limit=5, delay=10.0)
    assert WaitConfig.build("approval") == WaitConfig("approval", 86_400.0, False)


@pytest.mark.parametrize(
    "options",
    [
        {"limit": -1},
        {"limit": 10_001},
        {"limit": True},
        {"limit": 1.0},
        {"delay": "soon"},
        {"delay": -1},
        {"backoff": "cubic"},
        {"backoff": None},
        {"max_delay": "x"},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"jitter": True},
    ],
)
def test_retries_that_make_no_sense(options):
    """API §5: ``InvalidConfig`` names the option."""
    with pytest.raises(InvalidConfig, match="Retries"):
        Retries(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": "366 days"},
        {"timeout": True},
        {"timeout": [1]},
        {"retries": 3},
        {"sensitive": 1},
        {"queue": ""},
        {"queue": 5},
    ],
)
def test_step_options_that_make_no_sense(options):
    """API §5: ``InvalidConfig`` names the option."""
    StepConfig.build(timeout=1, sensitive=True)  # equal as keys of a cache, but not as options
    with pytest.raises(InvalidConfig):
        StepConfig.build(**options)


def test_waits():
    """Semantics §3.3: a time-out of 1 second to 365 days, by default 24 hours."""
    assert WaitConfig.build("a", timeout="1 second").timeout_s == 1
    for timeout in (0.5, "366 days", True):
        with pytest.raises(InvalidConfig):
            WaitConfig.build("a", timeout=timeout)
    with pytest.raises(InvalidName):
        WaitConfig.build("a b")
    config = WaitConfig.build("a", timeout=timedelta(minutes=1), sensitive=True)
    assert WaitConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [("constant", [3, 3, 3]), ("linear", [3, 6, 9]), ("exponential", [3, 6, 12])],
)
def test_backoff(backoff, expected):
    """Semantics §2.2: constant ``d``, linear ``d*n``, exponential ``d*2**(n-1)``, then ``max_delay``, then jitter."""
    retries = Retries(limit=3, delay=3, backoff=backoff)
    assert [retries.wait_s(n, 3.0, 0.5) for n in (1, 2, 3)] == expected
    assert [StepConfig.build(retries).wait_s(n, 0.5) for n in (1, 2, 3)] == expected


def test_jitter_comes_after_the_maximum():
    """Semantics §2.2, protocols §20: ``delay * (1 + uniform(-j, j))``."""
    retries = Retries(delay=10, max_delay=20, jitter=0.5)
    assert retries.wait_s(5, 10.0, 0.0) == 10
    assert retries.wait_s(5, 10.0, 0.5) == 20
    assert retries.wait_s(5, 10.0, 0.75) == 25


@given(
    st.sampled_from(["constant", "linear", "exponential"]),
    st.integers(1, 10_001),
    st.floats(0, 1e300),
    st.one_of(st.none(), st.floats(0, 1e300)),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_no_delay_overflows(backoff, attempt, base, most, jitter, dice):
    """Protocols §20: every delay is capped at 365 days before it is computed."""
    assert 0 <= backoff_s(backoff, attempt, base, most, jitter, dice) <= MAX_SECONDS


def test_a_delay_function_is_not_recorded():
    """Semantics §1.3: it is read from today's code."""

    def delay(ctx, error):
        return 4

    config = StepConfig.build(Retries(limit=1, delay=delay, backoff="linear"))
    assert config.has_delay_function
    assert config.delay_s is None
    assert StepConfig.from_json(config.to_json()) == config
    assert config.wait_s(3, 0.5, base_s=4) == 12
    assert config.retries(delay).delay is delay
    with pytest.raises(InvalidConfig):
        config.wait_s(1, 0.5)


@pytest.mark.parametrize("queue", ["", "a\nb", "a\0", "\ud800", 5, ["cpu"]])
def test_a_queue_is_named_in_printable_characters(queue):
    """Api §2: a name that no worker could be started with is refused where the step is written."""
    with pytest.raises(InvalidConfig, match="queue is"):
        StepConfig.build(queue=queue)


@given(
    st.builds(
        StepConfig,
        retries_limit=st.integers(0, 10_000),
        delay_s=st.one_of(st.none(), st.floats(0, MAX_SECONDS)),
        backoff=st.sampled_from(["constant", "linear", "exponential"]),
        max_delay_s=st.one_of(st.none(), st.floats(0, MAX_SECONDS)),
        jitter=st.floats(0, 1),
        timeout_s=st.floats(1, MAX_SECONDS),
        sensitive=st.booleans(),
        queue=st.one_of(st.none(), st.text(min_size=1)),
    )
)
def test_a_configuration_round_trips(config):
    """Semantics §1.3: what is fixed at the first start is read as it was written."""
    text = config.to_json()
    assert text.isascii()
    assert StepConfig.from_json(text) == config


def test_what_another_release_wrote_is_read():
    """Semantics §1.3: also what another release has written."""
    assert StepConfig.from_json('{"retries_limit":1,"colour":"red"}') == StepConfig(retries_limit=1)


def test_rollback_policy():
    """Semantics §5.8: order and what a failure means."""
    assert RollbackPolicy("parallel", "continue").order == "parallel"
    for options in ({"order": "random"}, {"on_error": "ignore"}):
        with pytest.raises(InvalidConfig):
            RollbackPolicy(**options)
