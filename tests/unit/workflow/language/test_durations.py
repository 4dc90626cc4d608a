from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.durations import MAX_SECONDS, UNITS, bounded, optional, positive, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1 second", 1),
        ("30 seconds", 30),
        ("0 seconds", 0),
        ("1 minute", 60),
        ("2 hours", 7_200),
        ("1 day", 86_400),
        ("2 weeks", 1_209_600),
        ("1 month", 30 * 86_400),
        ("1 year", 365 * 86_400),
        (timedelta(hours=1, microseconds=1), 3_600.000001),
        (5, 5),
        (0.25, 0.25),
        (0, 0),
    ],
)
def test_what_a_duration_means(value, expected):
    assert seconds(value) == expected
    assert isinstance(seconds(value), float)


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        None,
        [],
        -1,
        -0.1,
        timedelta(seconds=-1),
        float("nan"),
        float("inf"),
        10**400,
        "",
        "5",
        "second",
        "1.5 hours",
        "-1 day",
        "1 fortnight",
        "1 hour 2 minutes",
        "١ day",
        "1day",
    ],
)
def test_what_is_no_duration_is_refused_with_a_helpful_text(value):
    with pytest.raises(InvalidConfig) as caught:
        seconds(value, what="timeout")
    assert str(caught.value).startswith("timeout is ")


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.booleans())
def test_every_unit_singular_and_plural(n, unit, plural):
    assert seconds(f"{n} {unit}{'s' if plural else ''}") == n * UNITS[unit]


def test_bounds():
    assert bounded("1 year", what="sleep") == MAX_SECONDS
    assert bounded(0, what="sleep") == 0
    assert optional(None, what="retention") is None
    assert optional("1 day", what="retention") == 86_400
    with pytest.raises(InvalidConfig, match="365 days"):
        bounded("366 days", what="sleep")
    with pytest.raises(InvalidConfig, match="from 1 seconds to 365 days"):
        bounded(0.5, what="timeout", least=1.0)
    with pytest.raises(InvalidConfig, match="more than zero"):
        positive(0, what="timeout")
