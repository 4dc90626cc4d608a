"""What a schedule may say, and which moments it names: compared with a reading of cron's rules minute by minute."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.definition import WorkflowEvent, define
from orchestrator.workflow.language.names import MAX_SCHEDULED_ID, check_instance_id
from orchestrator.workflow.language.schedule import MAX_CRON, Schedule

MINUTE = 60
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Sydney", "Asia/Kolkata", "Africa/Cairo")
"""Clocks that are changed in both hemispheres, at midnight, and never."""


@dataclass
class Report:
    day: str


async def report(event: WorkflowEvent[Report], step):
    return event.payload


async def plain(event, step):
    return event.payload


def at(text: str, zone: str = "UTC") -> float:
    """Epoch seconds of a time on the clock of ``zone``; the first one, if it comes twice."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def moments(schedule: Schedule, after: float, until: float) -> list[float]:
    found = []
    while (after := schedule.following(after)) <= until:
        found.append(after)
    return found


def utc(schedule: Schedule, day: str) -> list[str]:
    """The moments of a day in its zone, as times in UTC."""
    start = at(day, schedule.tz)
    end = at(f"{day} 23:59", schedule.tz)
    return [datetime.fromtimestamp(m, UTC).strftime("%H:%M") for m in moments(schedule, start - 1, end)]


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("60 * * * *", "bad minute field"),
        ("* 24 * * *", "bad hour field"),
        ("* * 0 * *", "bad day-of-month field"),
        ("* * * 13 *", "bad month field"),
        ("* * * * 8", "bad day-of-week field"),
        ("5-1 * * * *", "bad minute field"),
        ("*/0 * * * *", "bad minute field"),
        ("a * * * *", "bad minute field"),
        ("0 0 30 2 *", "bad day-of-month field"),
        ("0 0 */20 * 1L", "there never is such a moment"),
        ("0\t0 * * *", "a tab or another control character"),
        (",".join("0" * 125) + " * * * *", "at most 256"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(cron: str, says: str) -> None:
    """api §1: a cron expression that says nothing is refused when the workflow is defined, naming both."""
    with pytest.raises(InvalidConfig, match="workflow 'plain' has the schedule '") as refused:
        define(plain, schedules=cron)
    assert says in str(refused.value)


@pytest.mark.parametrize("cron", ["", "@daily", "* * * *", "0 0 * * * *", "hourly", None, 5])
def test_an_expression_has_five_fields(cron: object) -> None:
    """api §1: five fields, neither seconds nor nicknames."""
    with pytest.raises(InvalidConfig, match="is not a cron expression of five fields"):
        Schedule(cron)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tz", ["Mars/Olympus", "../etc/passwd", "Europe", "/etc/passwd", "Europe/Berlin\0", "x" * 300]
)
def test_an_unknown_time_zone_is_refused(tz: str) -> None:
    """api §1: so is a time zone that is not in the database."""
    with pytest.raises(InvalidConfig, match="workflow 'plain' has the schedule '0 0"):
        define(plain, schedules=Schedule("0 0 * * *", tz))


def test_params_must_fit_the_workflow() -> None:
    """api §1: ``event.payload`` is validated; params that never will are refused when the workflow is defined."""
    with pytest.raises(
        InvalidConfig, match=r"workflow 'report' has the schedule '0 1 \* \* \*', whose params do not fit"
    ):
        define(report, schedules="0 1 * * *")
    with pytest.raises(InvalidConfig, match="do not fit"):
        define(report, schedules=Schedule("0 1 * * *", params={"week": 1}))
    with pytest.raises(InvalidConfig, match="do not fit"):
        define(plain, schedules=Schedule("0 1 * * *", params=object()))
    define(
        report,
        schedules=[Schedule("0 1 * * *", params=Report("mon")), Schedule("0 2 * * *", params={"day": "x"})],
    )


def test_a_class_that_comes_later_is_no_reason_to_refuse() -> None:
    """api §1: an annotation that cannot be read yet decides nothing, and is read again afterwards."""

    async def early(event: WorkflowEvent[Nightly], step):  # noqa: F821
        return event.payload

    definition = define(early, schedules=Schedule("0 1 * * *", params={"day": "mon"}))
    globals()["Nightly"] = Report
    try:
        assert definition.payload_type is Report
    finally:
        del globals()["Nightly"]


FIELD = st.text("0123456789*/-,#LWMONJA", min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD).map(" ".join), st.sampled_from(ZONES))
def test_whatever_is_written_is_understood_or_refused(cron: str, tz: str) -> None:
    """api §5: bad input gets our error, never another one."""
    schedule = Schedule(cron, tz)
    try:
        schedule.check()
    except InvalidConfig:
        return
    assert 0 < schedule.following(0) < inf


# -- names and ids ----------------------------------------------------------------------------------------


def test_ids_tell_expression_zone_and_moment() -> None:
    """protocols §20: ``{cron}-{ms}`` in UTC, ``{cron}@{tz}-{ms}`` otherwise."""
    assert Schedule("0 2 * * MON").instance_id(1_800_000_000.0) == "0 2 * * MON-1800000000000"
    assert Schedule("0 2 * * 1", "Asia/Tokyo").instance_id(60.0) == "0 2 * * 1@Asia/Tokyo-60000"


def test_the_longest_id_can_be_addressed() -> None:
    """semantics §3.4: ids of scheduled instances are addressable up to 271 characters."""
    for tz, room in (("UTC", MAX_CRON), ("Europe/Berlin", MAX_CRON - len("@Europe/Berlin"))):
        cron = ",".join(["7"] * 130)[: room - len(" * * * *")].rstrip(",") + " * * * *"
        cron = cron.replace("7", "07", room - len(cron))
        schedule = Schedule(cron, tz)
        schedule.check()
        name = schedule.instance_id(99_999_999_999.999)
        assert len(check_instance_id(name, scheduled=True)) == MAX_SCHEDULED_ID
        with pytest.raises(InvalidConfig):
            Schedule("0" + cron, tz).check()


@pytest.mark.parametrize(
    ("cron", "same"),
    [("0 2 * JAN *", "0 2 * 1 *"), ("0 2 * * MON-FRI", "0 2 * * 1-5"), ("0 2 * * sun", "0 2 * * 7")],
)
def test_months_and_weekdays_have_names(cron: str, same: str) -> None:
    """api §1: an expression may name months and weekdays."""
    start = at("2026-01-01")
    assert moments(Schedule(cron), start, start + 40 * 86400) == moments(
        Schedule(same), start, start + 40 * 86400
    )


# -- clocks that are changed --------------------------------------------------------------------------------


def test_the_hour_that_is_left_out() -> None:
    """decision 12: in spring a job of a certain time runs when the gap ends, once; one of every so many minutes
    skips it."""
    berlin = "Europe/Berlin"  # 2026-03-29: 02:00 becomes 03:00, which is 01:00 in UTC
    assert utc(Schedule("30 2 * * *", berlin), "2026-03-29") == ["01:00"]
    assert utc(Schedule("0,30 2 * * *", berlin), "2026-03-29") == ["01:00"]
    assert utc(Schedule("30 1-3 * * *", berlin), "2026-03-29") == ["00:30", "01:00", "01:30"]
    assert utc(Schedule("*/30 2 * * *", berlin), "2026-03-29") == []
    assert moments(Schedule("*/20 * * * *", berlin), at("2026-03-29"), at("2026-03-29") + 3600 * 2) == [
        at("2026-03-29") + 1200 * n for n in range(1, 7)
    ]


def test_the_hour_that_comes_twice() -> None:
    """decision 12: in autumn a job of a certain time runs once, the first time; one of every so many minutes, twice."""
    berlin = "Europe/Berlin"  # 2026-10-25: 03:00 becomes 02:00, which is 01:00 in UTC
    assert utc(Schedule("30 2 * * *", berlin), "2026-10-25") == ["00:30"]
    assert utc(Schedule("0,30 2,3 * * *", berlin), "2026-10-25") == ["00:00", "00:30", "02:00", "02:30"]
    assert utc(Schedule("*/30 2 * * *", berlin), "2026-10-25") == ["00:00", "00:30", "01:00", "01:30"]


@dataclass(frozen=True)
class Fields:
    """A cron expression by its fields; ``None`` is a star."""

    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    weekdays: tuple[int, ...] | None

    @property
    def cron(self) -> str:
        written = [
            "*" if field is None else ",".join(map(str, field))
            for field in (self.minutes, self.hours, self.days, None, self.weekdays)
        ]
        return " ".join(written)

    def fits(self, clock: datetime) -> bool:
        on_day = self.days is None or clock.day in self.days
        on_weekday = self.weekdays is None or clock.isoweekday() % 7 in self.weekdays
        both = self.days is None or self.weekdays is None
        day = on_day and on_weekday if both else on_day or on_weekday
        return (
            day
            and (self.hours is None or clock.hour in self.hours)
            and (self.minutes is None or clock.minute in self.minutes)
        )

    def expected(self, zone: ZoneInfo, start: float, end: float) -> list[float]:
        """The rules of Debian's cron, minute by minute: what is left out in spring runs when the gap ends, what comes
        twice in autumn runs the first time, unless minute or hour is a star."""
        found, before = [], datetime.fromtimestamp(start - MINUTE, zone).replace(tzinfo=None)
        for minute in range(int(start), int(end) + 1, MINUTE):
            here = datetime.fromtimestamp(minute, zone)
            clock = here.replace(tzinfo=None, fold=0)
            if self.minutes is None or self.hours is None:
                fires = self.fits(clock)
            else:
                left_out = []
                while before + timedelta(minutes=1) < clock:
                    before += timedelta(minutes=1)
                    left_out.append(before)
                fires = here.fold == 0 and (self.fits(clock) or any(map(self.fits, left_out)))
            before = clock
            if fires:
                found.append(float(minute))
        return found


def some(low: int, high: int) -> st.SearchStrategy[tuple[int, ...] | None]:
    values = st.lists(st.integers(low, high), min_size=1, max_size=3, unique=True).map(
        lambda v: tuple(sorted(v))
    )
    return st.none() | values


FIELDS = st.builds(Fields, some(0, 59), some(0, 4), some(1, 31), some(0, 6))
CHANGES = (
    "2026-03-29",
    "2026-10-25",
    "2026-03-08",
    "2026-11-01",
    "2026-04-05",
    "2026-10-04",
    "2026-04-24",
    "2026-10-30",
)


@settings(max_examples=150, deadline=None)
@given(FIELDS, st.sampled_from(ZONES), st.sampled_from(CHANGES), st.integers(0, 86400))
def test_moments_are_those_of_cron(fields: Fields, tz: str, day: str, offset: int) -> None:
    """decision 12: wherever one begins to look, it is exactly cron's moments that follow, around changed clocks too."""
    start = (int(at(day)) - 86400 + offset) // MINUTE * MINUTE
    end = start + 3 * 86400
    schedule = Schedule(fields.cron, tz)
    expected = fields.expected(ZoneInfo(tz), start, end)
    assert moments(schedule, start - 1, end) == expected
    assert [schedule.following(start + n * 5400 + 0.5) for n in range(8)] == [
        next((m for m in expected if m > start + n * 5400 + 0.5), schedule.following(end)) for n in range(8)
    ]


@settings(max_examples=100, deadline=None)
@given(FIELDS, st.sampled_from(ZONES), st.integers(0, 40 * 86400), st.integers(0, 40 * 86400))
def test_the_latest_is_the_last_of_all(fields: Fields, tz: str, begins: int, lasts: int) -> None:
    """decision 12: the last moment before another is found from behind, and is the one that walking finds."""
    schedule = Schedule(fields.cron, tz)
    since = schedule.following(at("2026-03-01") + begins)
    until = since + lasts
    walked = since
    while (following := schedule.following(walked)) <= until:
        walked = following
    assert schedule.latest(since, until) == walked
