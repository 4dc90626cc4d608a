"""Schedules: when instances are created by themselves.

Owns: what a schedule says, whether that makes sense, the moments it names, and the ids of its instances. Does not own
which of these moments are due (``control.schedules``). Moments are computed by cronsim, which follows Debian's cron,
also where clocks are changed (decision 12). Reads nothing but the time zone database.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from math import floor, inf
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.names import MAX_SCHEDULED_ID

MAX_CRON = MAX_SCHEDULED_ID - len("-99999999999999")
"""Characters of an expression, with its ``@`` and time zone: so the ids of its instances keep their bound."""
_LOOKED_BACK_S = 3600.0


@dataclass(frozen=True)
class Schedule:
    """When instances are created by themselves: a cron expression, in the time zone ``tz`` (an IANA name), with
    ``params``.

    The expression is five fields (minute, hour, day, month, weekday), as in Debian's cron. Raises ``InvalidConfig`` if
    it is not; whether fields and time zone make sense is checked when a workflow is defined with it.
    """

    cron: str
    tz: str = "UTC"
    params: Any = None

    def __post_init__(self) -> None:
        if not _has_five_fields(self.cron):
            raise InvalidConfig(f"schedule {self.cron!r:.80} is not a cron expression of five fields")
        if not (self.tz and isinstance(self.tz, str)):
            raise InvalidConfig(
                f"schedule {self.cron!r:.80} has the time zone {self.tz!r}; expected its name"
            )

    def __str__(self) -> str:
        """How its instances' ids begin: the expression, and its time zone unless that is UTC."""
        return self.cron if self.tz == "UTC" else f"{self.cron}@{self.tz}"

    def instance_id(self, moment: float) -> str:
        """The id of the instance that is created for ``moment`` (epoch seconds)."""
        return f"{self}-{round(moment * 1000)}"

    def following(self, after: float) -> float:
        """The first moment after ``after``, epoch seconds; ``inf`` if there is none within fifty years.

        Raises ``InvalidConfig`` as ``check`` does.
        """
        return next(self._moments(after), inf)

    def latest(self, since: float, until: float) -> float:
        """The last moment that is not after ``until``, given that ``since`` is a moment too, and no later one."""
        window = _LOOKED_BACK_S
        while until - window > since:  # years of a moment each minute are not walked through
            found = self._last(until - window, until)
            if found is not None:
                return found
            window *= 8
        return self._last(since, until) or since

    def check(self) -> None:
        """Raises ``InvalidConfig`` if the expression or time zone makes no sense, or there never is such a moment."""
        if not str(self).isprintable():
            raise InvalidConfig(f"{self!s:.300} holds a tab or another control character")
        if len(str(self)) > MAX_CRON:
            raise InvalidConfig(f"{len(str(self))} characters; at most {MAX_CRON} are allowed")
        if self.following(0.0) == inf:
            raise InvalidConfig("there never is such a moment")

    def _last(self, after: float, until: float) -> float | None:
        last = None
        for moment in self._moments(after):
            if moment > until:
                break
            last = moment
        return last

    def _moments(self, after: float) -> Iterator[float]:
        """All moments after ``after``, in order."""
        start = datetime.fromtimestamp(floor(after), _zone(self.tz))
        try:
            found = CronSim(self.cron, start)
        except CronSimError as error:
            raise InvalidConfig(f"{str(error).lower()} field") from None
        for each in found:
            moment = each.timestamp()
            # Begun in an hour that is there for the second time, cronsim names moments of the first.
            if moment > after:
                yield moment


def checked_schedules(
    value: str | Schedule | Iterable[str | Schedule], workflow: str
) -> tuple[Schedule, ...]:
    """The schedules of a workflow, as they were given to its definition. Raises ``InvalidConfig``."""
    several = [value] if isinstance(value, str | Schedule) else value
    if not isinstance(several, Iterable):
        raise InvalidConfig(
            f"schedules of workflow {workflow!r} is {value!r}; expected a cron expression, a Schedule, or several"
        )
    schedules = tuple(each if isinstance(each, Schedule) else Schedule(each) for each in several)
    if len({str(each) for each in schedules}) < len(schedules):
        raise InvalidConfig(
            f"schedules of workflow {workflow!r} holds the same expression and time zone twice"
        )
    for each in schedules:
        try:
            each.check()
        except InvalidConfig as error:
            raise InvalidConfig(
                f"workflow {workflow!r} has the schedule {str(each)!r:.300}: {error}"
            ) from None
    return schedules


def _has_five_fields(value: object) -> bool:
    return isinstance(value, str) and len(value.split()) == 5


@lru_cache(256)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # cronsim knows by this object that no clock is ever changed
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown, not a name at all, or a folder of the database
        raise InvalidConfig(
            f"there is no time zone {name!r}; expected an IANA name like 'Europe/Berlin'"
        ) from None
