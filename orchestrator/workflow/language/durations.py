"""Durations as users write them.

Owns: which spellings of a duration there are, and how many seconds each means. Does not own what a particular
duration may be (a timeout, a retention …): callers check their own bounds.
"""

import math
import re
from datetime import timedelta

from orchestrator.errors import InvalidConfig

Duration = timedelta | int | float | str
"""A ``timedelta``, a number of seconds, or text such as ``"30 seconds"``, ``"1 hour"``, ``"2 weeks"``."""

UNITS = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,
    "year": 365 * 86_400,
}
"""Seconds of each unit. A month is 30 days and a year 365, always."""

MAX_SECONDS = 365.0 * UNITS["day"]
"""The longest sleep, timeout or retry delay, in seconds."""

_TEXT = re.compile(r"([0-9]{1,18}) +(second|minute|hour|day|week|month|year)s?", re.ASCII)
_EXPECTED = (
    'a timedelta, a number of seconds, or "<n> second(s)|minute(s)|hour(s)|day(s)|week(s)|month(s)|year(s)"'
    " with a whole number n"
)


def seconds(value: Duration, *, what: str = "duration") -> float:
    """The duration in seconds; never negative, never infinite, and without an upper bound.

    ``what`` names the value in the error. Raises ``InvalidConfig`` for anything that is
    not a duration: a bool, NaN, an infinity, a negative amount, or text in another form.
    """
    if isinstance(value, str):
        return _from_text(value, what)
    if isinstance(value, timedelta):
        amount = value.total_seconds()
    elif not isinstance(value, bool) and isinstance(value, int | float):
        amount = _from_number(value, what)
    else:
        raise InvalidConfig(f"{what} is {value!r}; expected {_EXPECTED}")
    if amount < 0:
        raise InvalidConfig(f"{what} is {value!r}; it must not be negative")
    return amount + 0.0  # turns -0.0 into 0.0


def bounded(value: Duration, *, what: str, least: float = 0.0, most: float = MAX_SECONDS) -> float:
    """The duration in seconds, refused with ``InvalidConfig`` outside least..most."""
    amount = seconds(value, what=what)
    if not least <= amount <= most:
        raise InvalidConfig(f"{what} is {value!r}; it must be from {_spoken(least)} to {_spoken(most)}")
    return amount


def positive(value: Duration, *, what: str, most: float = MAX_SECONDS) -> float:
    """The duration in seconds, refused with ``InvalidConfig`` unless 0 < it <= most."""
    amount = bounded(value, what=what, most=most)
    if amount == 0:
        raise InvalidConfig(f"{what} is {value!r}; it must be more than zero")
    return amount


def optional(value: Duration | None, *, what: str) -> float | None:
    """The duration in seconds, ``None`` for ``None``. Raises ``InvalidConfig``."""
    return None if value is None else seconds(value, what=what)


def _from_text(text: str, what: str) -> float:
    match = _TEXT.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidConfig(f"{what} is {text!r}; expected {_EXPECTED}")
    return float(int(match[1]) * UNITS[match[2]])


def _from_number(value: int | float, what: str) -> float:
    try:
        amount = float(value)
    except OverflowError:
        amount = math.inf
    if not math.isfinite(amount):
        raise InvalidConfig(f"{what} is {value!r:.40}; it must be a finite number of seconds")
    return amount


def _spoken(amount_s: float) -> str:
    days, rest = divmod(amount_s, UNITS["day"])
    return f"{days:g} days" if days and not rest else f"{amount_s:g} seconds"
