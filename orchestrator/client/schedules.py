"""The schedules of workflows as applications and people see them: listing, pausing, resuming.

Owns: these verbs and their record. Does not own: when a schedule fires (``control``), nor what it says (``workflow``).
Schedules stand in the database since a worker that has them started; these verbs need no code of the workflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.client.orchestrator import Orchestrator, check_outside, current, offload
from orchestrator.errors import InvalidConfig
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.schedule import Schedule

if TYPE_CHECKING:
    from orchestrator.store.records.schedules import Row


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule as it stands: what creates instances of version ``version`` with ``params``, and when."""

    workflow: str
    version: str
    cron: str
    tz: str
    params: Any
    paused: bool
    next_at: datetime | None
    """When it fires next; ``None`` while it is paused."""
    last_at: datetime | None
    """The moment it fired for last; ``None`` if it never did."""


class Scheduled:
    """The verbs of a workflow on its schedules."""

    definition: Definition

    def schedules(self, *, orchestrator: Orchestrator | None = None) -> list[ScheduleRecord]:
        """The schedules that the workflow has in the database: those of the worker that was started last. Empty before
        one has started. Raises ``ServiceUnavailable``, ``SchemaNotMigrated``."""
        check_outside("schedules")
        return listed(orchestrator or current(), self.definition.name)

    async def aschedules(self, **options: Any) -> list[ScheduleRecord]:
        """``schedules`` for asyncio."""
        check_outside("aschedules")
        return await offload(self.schedules, **options)

    def pause_schedule(
        self, cron: str, tz: str | None = None, *, orchestrator: Orchestrator | None = None
    ) -> ScheduleRecord:
        """Let one schedule fire no more, until it is resumed. Also across deploys, as long as they have it.

        ``tz`` may be left out where one schedule alone has that expression. Pausing a paused one changes nothing.
        Raises ``InvalidConfig``, which lists what there is, if there is no such schedule; ``ServiceUnavailable``.
        """
        check_outside("pause_schedule")
        return turn(orchestrator or current(), self.definition.name, cron, tz, is_paused=True)

    async def apause_schedule(self, cron: str, tz: str | None = None, **options: Any) -> ScheduleRecord:
        """``pause_schedule`` for asyncio."""
        check_outside("apause_schedule")
        return await offload(self.pause_schedule, cron, tz, **options)

    def resume_schedule(
        self, cron: str, tz: str | None = None, *, orchestrator: Orchestrator | None = None
    ) -> ScheduleRecord:
        """Let one schedule fire again, from its next moment on: those that passed while it was paused never fire.

        Resuming one that is not paused changes nothing. Raises as ``pause_schedule`` does.
        """
        check_outside("resume_schedule")
        return turn(orchestrator or current(), self.definition.name, cron, tz, is_paused=False)

    async def aresume_schedule(self, cron: str, tz: str | None = None, **options: Any) -> ScheduleRecord:
        """``resume_schedule`` for asyncio."""
        check_outside("aresume_schedule")
        return await offload(self.resume_schedule, cron, tz, **options)


def listed(where: Orchestrator, workflow: str | None = None) -> list[ScheduleRecord]:
    """The schedules of one workflow, or of all of the account, by workflow, expression and time zone."""
    from orchestrator.store.records import schedules

    with where.lanes.statement() as connection:
        rows = schedules.listed(connection, where.settings.account, workflow)
    return [_record(row) for row in rows]


def turn(where: Orchestrator, workflow: str, cron: str, tz: str | None, *, is_paused: bool) -> ScheduleRecord:
    """Pause or resume one schedule; returns how it stands then. Raises ``InvalidConfig`` if there is none."""
    from orchestrator.store.records import schedules
    from orchestrator.store.session import transaction

    account = where.settings.account
    verb = "paused" if is_paused else "resumed"
    now = where.now()
    unknown = f"That was in the commit: it is unknown whether the schedule was {verb}."
    with transaction(where.engine, f"The schedule was not {verb}.", unknown) as connection:
        row = _found(schedules.listed(connection, account, workflow), workflow, cron, tz)
        if is_paused:
            schedules.pause(connection, account, row)
        else:
            schedules.resume(connection, account, row, Schedule(row.cron, row.tz).following(now))
        row = _found(schedules.listed(connection, account, workflow), workflow, row.cron, row.tz)
    return _record(row)


def _found(rows: list[Row], workflow: str, cron: str, tz: str | None) -> Row:
    found = [row for row in rows if row.cron == cron and tz in (None, row.tz)]
    if len(found) == 1:
        return found[0]
    if found:
        zones = ", ".join(row.tz for row in found)
        raise InvalidConfig(
            f"workflow {workflow!r} has the schedule {cron!r} in several time zones: name one of {zones}"
        )
    wanted = repr(cron) if tz is None else f"{cron!r} in {tz}"
    if not rows:
        there = "it has none in this database (a worker enters them when it starts)"
    else:
        there = "it has " + ", ".join(repr(str(Schedule(row.cron, row.tz))) for row in rows)
    raise InvalidConfig(f"workflow {workflow!r} has no schedule {wanted:.300}; {there}")


def _record(row: Row) -> ScheduleRecord:
    is_over = row.is_paused or row.next_at == FOREVER
    return ScheduleRecord(
        workflow=row.workflow,
        version=row.version,
        cron=row.cron,
        tz=row.tz,
        params=codec.decode(row.params),
        paused=row.is_paused,
        next_at=None if is_over else datetime.fromtimestamp(row.next_at, UTC),
        last_at=None if row.last_at is None else datetime.fromtimestamp(row.last_at, UTC),
    )
