"""Schedules fire: what is due, and creating its instances, once each, however many workers look.

Owns: the policy after a downtime (the last missed moment fires), when to look, and entering the schedules that this
process's definitions have. Does not own: what an expression means (``workflow.language.schedule``), the rows
(``store``), how a queued instance starts (``souschef``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.control.rounds import Round
from orchestrator.errors import InvalidConfig
from orchestrator.failpoints import reach
from orchestrator.ports import new_id
from orchestrator.settings import Settings
from orchestrator.store.records import schedules
from orchestrator.store.records.schedules import Firing, Planned, Row
from orchestrator.store.session import Connection, Engine
from orchestrator.workflow.language.definition import Registry, check_scheduled
from orchestrator.workflow.language.schedule import Schedule

logger = logging.getLogger(__name__)

AT_ONCE = 200
"""Schedules that one round fires; what is left over is due in the next."""
LOOK_AGAIN_S = 5.0
"""How soon a worker sees that a schedule was entered or resumed by another process."""
LATE_S = 60.0
"""What is worth a line in the log."""


class Due(NamedTuple):
    """The moment a schedule fires for, and the one after it that is still to come; epoch seconds."""

    moment: float
    next_at: float


def due(schedule: Schedule, next_at: float, now: float) -> Due | None:
    """What ``schedule`` fires for at ``now``, if ``next_at`` is its first moment that has not fired.

    ``None`` while that is to come. Of several missed moments it is the last one; those before it never fire.
    """
    if next_at > now:
        return None
    return Due(schedule.latest(next_at, now), schedule.following(now))


class Schedules:
    """The duty: in each cycle in which a moment has come, queue the instances of what is due.

    Their ids tell schedule and moment, rows are locked while they fire, and locked ones are skipped: so any number of
    workers may do this at once. A worker whose definitions have no schedule never asks the database.
    """

    def __init__(self, engine: Engine, settings: Settings, registry: Registry) -> None:
        self._engine = engine
        self._settings = settings
        self._registry = registry
        self._look_at = 0.0
        self._is_entered = False
        self._complained: set[tuple[str, str, str, str]] = set()

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round. The cycle that follows starts what was queued; if this process dies before, another's does."""
        if not self._is_entered:  # once in the life of a process: who was started last has the say
            self._enter(now)
            self._is_entered = True
        if now < self._look_at:
            return Round(again_at=self._look_at)
        if not self._has_schedules():
            return Round()
        with self._engine.begin() as connection:
            late = self._fire(connection, now, known)
            nearest = schedules.nearest(connection, self._settings.account, known)
        reach("schedules.after_fire")
        for firing in late:
            logger.warning(
                "Schedule %r of workflow %r fires %.0f s late, for the last moment it missed.",
                str(Schedule(firing.row.cron, firing.row.tz)),
                firing.row.workflow,
                now - firing.moment,
            )
        if nearest <= now:  # another process is firing it, or it was more than one round takes
            self._look_at = 0.0
            return Round()
        self._look_at = min(nearest, now + LOOK_AGAIN_S)
        return Round(again_at=self._look_at)

    def _enter(self, now: float) -> None:
        """Let the account have the schedules of the definitions here, of each workflow those of its latest version."""
        workflows = sorted({name for name, _ in self._registry.known()})
        planned = [each for name in workflows for each in self._planned(name, now)]
        with self._engine.begin() as connection:
            schedules.register(connection, self._settings.account, workflows, planned)

    def _planned(self, name: str, now: float) -> Iterator[Planned]:
        definition = self._registry.latest(name)
        for schedule in definition.options.schedules:
            try:
                params = check_scheduled(definition, schedule, definition.payload_type)
            except InvalidConfig as error:
                logger.error("%s. This schedule does not fire.", error)
                continue
            next_at = schedule.following(now)
            yield Planned(name, definition.version, schedule.cron, schedule.tz, params, next_at)

    def _has_schedules(self) -> bool:
        return any(self._registry.get(*each).options.schedules for each in self._registry.known())

    def _fire(self, connection: Connection, now: float, known: Sequence[str]) -> list[Firing]:
        """Fire what is due; returns those that are late, or have missed moments."""
        account = self._settings.account
        rows = schedules.due(connection, account, known, now, AT_ONCE)
        firings = [firing for row in rows if (firing := self._firing(row, now)) is not None]
        if firings:
            schedules.fire(connection, account, firings, now)
        return [firing for firing in firings if now - firing.row.next_at > LATE_S]

    def _firing(self, row: Row, now: float) -> Firing | None:
        schedule = Schedule(row.cron, row.tz)
        try:
            found = due(schedule, row.next_at, now)
        except InvalidConfig as error:  # entered by a worker with another cronsim or time zone database
            if row[:4] not in self._complained:
                self._complained.add(row[:4])
                logger.error(
                    "Schedule %r of workflow %r cannot fire here: %s", str(schedule), row.workflow, error
                )
            return None
        if found is None:
            return None
        options = self._registry.get(row.workflow, row.version).options
        success_s, error_s = options.success_retention_s, options.error_retention_s
        return Firing(
            row,
            found.moment,
            found.next_at,
            new_id(now),
            schedule.instance_id(found.moment),
            self._kept(self._settings.success_retention if success_s is None else success_s),
            self._kept(self._settings.error_retention if error_s is None else error_s),
        )

    def _kept(self, retention_s: float) -> float:
        """Nobody is there to be refused: what is too long for the deployment is cut to what it allows."""
        return min(retention_s, self._settings.retention_limit)
