"""The policy of schedules: what is due, with any downtime in between. Time is a list of looks."""

from __future__ import annotations

from datetime import datetime
from math import inf
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.control.schedules import Due, due
from orchestrator.workflow.language.schedule import Schedule

BERLIN = "Europe/Berlin"
NIGHTLY = Schedule("30 2 * * *", BERLIN)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN)).timestamp()


def looked(schedule: Schedule, registered: float, looks: list[float]) -> list[float]:
    """The moments a schedule fires for, when somebody looks at these times."""
    fired, next_at = [], schedule.following(registered)
    for now in looks:
        found = due(schedule, next_at, now)
        if found is not None:
            fired.append(found.moment)
            next_at = found.next_at
    return fired


def every(schedule: Schedule, after: float, until: float) -> list[float]:
    moments = []
    while (after := schedule.following(after)) <= until:
        moments.append(after)
    return moments


def test_nothing_is_due_before_its_moment() -> None:
    """protocols §20: never early, and at its very moment."""
    moment = at("2026-07-01 02:30")
    assert due(NIGHTLY, moment, moment - 0.000001) is None
    assert due(NIGHTLY, moment, moment) == Due(moment, at("2026-07-02 02:30"))


def test_of_missed_moments_the_last_fires() -> None:
    """protocols §20: three nights without a worker: one report, the last; and the next night is not lost for it."""
    found = due(NIGHTLY, at("2026-07-01 02:30"), at("2026-07-03 17:00"))
    assert found == Due(at("2026-07-03 02:30"), at("2026-07-04 02:30"))


def test_a_year_of_minutes_is_not_walked_through() -> None:
    """protocols §20: the last missed moment is found from behind, also after years."""
    schedule = Schedule("* * * * *", BERLIN)
    asked = []

    class Counting(Schedule):
        def _moments(self, after: float):
            for moment in super()._moments(after):
                asked.append(moment)
                yield moment

    now = at("2036-07-01 12:00:30")
    assert due(Counting("* * * * *", BERLIN), at("2026-07-01 02:30"), now) == due(schedule, now - 30, now)
    assert len(asked) < 100


@pytest.mark.parametrize(
    ("day", "moments"),
    [("2026-03-29", ["03:00"]), ("2026-10-25", ["02:30"])],
)
def test_changed_clocks_make_no_second_night_and_lose_none(day: str, moments: list[str]) -> None:
    """decision 12: the job of half past two runs once in the night without that time, and once where it comes twice."""
    start = at(f"{day} 00:00")
    looks = [start + 10 * n for n in range(6 * 360)]
    assert looked(NIGHTLY, start, looks) == [at(f"{day} {each}") for each in moments]


def test_a_schedule_without_a_further_moment_rests() -> None:
    """protocols §20: one that never comes again is no error: it is never due."""
    leap = Schedule("0 0 29 2 *")
    assert due(leap, inf, at("2099-01-01 00:00")) is None


CRONS = st.sampled_from(
    [
        "* * * * *",
        "*/7 * * * *",
        "0 * * * *",
        "15,45 1-3 * * *",
        "30 2 * * *",
        "0 0 1 * *",
        "0 12 13 * FRI",
        "*/20 */5 * * MON-FRI",
    ]
)
SCHEDULES = st.builds(Schedule, CRONS, st.sampled_from(["UTC", BERLIN, "America/New_York", "Africa/Cairo"]))
GAPS = st.lists(st.sampled_from([0.4, 1.0, 59.0, 61.0, 1800.0, 5000.0, 90_000.0, 200_000.0]), max_size=40)


@settings(max_examples=100, deadline=None)
@given(SCHEDULES, st.floats(at("2026-03-20 00:00"), at("2026-11-02 00:00")), GAPS)
def test_exactly_the_moments_but_for_skipped_ones(
    schedule: Schedule, registered: float, gaps: list[float]
) -> None:
    """protocols §20: whenever somebody looks: only moments of the expression fire, each at most once and in order, none
    from before it was registered; and in every interval between two looks the last moment does."""
    looks, now = [], registered
    for gap in gaps:
        now += gap
        looks.append(now)
    expected, before = [], registered
    for look in looks:
        expected += every(schedule, max(before, look - 201_000), look)[-1:]
        before = look
    assert looked(schedule, registered, looks) == expected
    assert expected == sorted(set(expected))


@settings(max_examples=30, deadline=None)
@given(SCHEDULES, st.floats(at("2026-03-20 00:00"), at("2026-11-02 00:00")))
def test_who_looks_often_enough_misses_nothing(schedule: Schedule, registered: float) -> None:
    """protocols §20: with a look a second around each moment all of them fire, none twice."""
    moments = every(schedule, registered, registered + 86_400)[:200]
    looks = sorted({registered, *(m - 0.5 for m in moments), *moments, *(m + 1.0 for m in moments)})
    assert looked(schedule, registered, looks) == moments
