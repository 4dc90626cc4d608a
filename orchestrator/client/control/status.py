"""How the control plane of an account stands: slots, limits, queues, who looks after what.

Owns: putting it together, and the records. Does not own: any of it (``store.control``, ``control.gatekeeping``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.client.asking.history import instant, optional_instant
from orchestrator.client.control.limits import Declaration, LimitsRecord, declarations, record
from orchestrator.client.listing import CHEAP
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.workflow.status import Status

if TYPE_CHECKING:
    from orchestrator.control.gatekeeping.gatekeeper import Usage
    from orchestrator.store.control.counts import Kept
    from orchestrator.store.control.limits import Override
    from orchestrator.store.control.standing import Cut
    from orchestrator.store.session import Connection


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker that is alive."""

    id: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    started_at: datetime
    shards: int
    """How many shards it looks after, of all workflows."""


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One cut of the queue of a workflow. New instances use the last one; those before drain."""

    generation: int
    first: int
    shards: int
    owned: int
    """Shards that a living worker looks after."""
    is_draining: bool
    waiting: int
    """Instances that are queued in it, at least. Those of the last generation are not counted for this."""
    is_more: bool
    """There may be more."""
    oldest_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A workflow: its instances, slots, limits and queue."""

    name: str
    counts: Mapping[Status, int]
    counted_at: datetime | None
    """When; ``None``: just now."""
    slots: int | None
    """Slots that its instances hold; ``None`` while Redis is away."""
    limits: LimitsRecord
    generations: Sequence[GenerationRecord]
    oldest_at: datetime | None
    """Since when the oldest queued instance waits; ``None`` where none does."""
    queue_age: float
    """For how many seconds; 0 where none waits."""


@dataclass(frozen=True, slots=True)
class ControlStatus:
    """The control plane of one account."""

    account: str
    coordinators: str
    """``one``: a single worker coordinates (V1); ``many``: each has its share (V2)."""
    granting: bool | None
    """Whether slots are granted: not while leases are being rebuilt. ``None``: Redis is away."""
    slots: int | None
    """Slots that are held; ``None`` while Redis is away."""
    limits: LimitsRecord
    workers: Sequence[WorkerRecord]
    workflows: Sequence[WorkflowRecord]


class _Rows(NamedTuple):
    """What Postgres says."""

    coordinators: str
    overrides: dict[str, Override]
    declared: dict[str, Declaration]
    cuts: list[Cut]
    kept: dict[str, Kept]
    workers: list[WorkerRecord]


def status(where: Orchestrator, workflow: str | None = None, *, recount: bool = True) -> ControlStatus:
    """How the control plane stands, with one workflow or all: those that workers have registered, that have a queue, or
    that an operator's limits hold for.

    Few instances are counted here; without ``recount`` none are, and the figures are those of the last count. Costs the
    same at two million queued instances as at two thousand. Raises ``ServiceUnavailable`` without Postgres;
    without Redis what it would say is ``None``.
    """
    rows = _read(where, workflow)
    limited = {name for name, override in rows.overrides.items() if override.values}
    known = {*rows.declared, *limited, *(cut.workflow for cut in rows.cuts)} - {""}
    names = sorted(known) if workflow is None else [workflow]
    usage = _usage(where, names, rows.declared)
    now = where.now()
    return ControlStatus(
        account=where.settings.account,
        coordinators=rows.coordinators,
        granting=None if usage is None else usage.is_ready,
        slots=None if usage is None else usage.account.used,
        limits=record(where, rows.overrides, ""),
        workers=rows.workers,
        workflows=[_workflow(where, name, rows, usage, now, recount) for name in names],
    )


def _read(where: Orchestrator, workflow: str | None) -> _Rows:
    from orchestrator.store.control import counts, layouts, limits, standing

    account = where.settings.account
    with where.lanes.statement() as connection:
        return _Rows(
            coordinators=layouts.coordinators(connection, account),
            overrides=limits.read(connection, account),
            declared=declarations(connection, account, None if workflow is None else [workflow]),
            cuts=standing.cuts(connection, account, workflow),
            kept=counts.read(connection, account),
            workers=_workers(connection, where),
        )


def _workers(connection: Connection, where: Orchestrator) -> list[WorkerRecord]:
    from orchestrator.store.control import standing
    from orchestrator.store.views import registered

    settings = where.settings
    live = registered.live_workers(connection, settings.account, settings.lease + settings.heartbeat)
    owners = standing.owners(connection, settings.account)
    return [
        WorkerRecord(
            id=str(each.id),
            hostname=each.hostname,
            pid=each.pid,
            queues=each.queues,
            started_at=instant(each.started_at),
            shards=owners.get(each.id, 0),
        )
        for each in live
    ]


def _usage(where: Orchestrator, names: Sequence[str], declared: Mapping[str, Declaration]) -> Usage | None:
    from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper

    gatekeeper = Gatekeeper(
        where.settings, "status", lambda name: declared[name].concurrency if name in declared else None
    )
    try:
        return gatekeeper.usage(names)
    finally:
        gatekeeper.close()


def _workflow(
    where: Orchestrator, name: str, rows: _Rows, usage: Usage | None, now: float, recount: bool
) -> WorkflowRecord:
    cuts = [cut for cut in rows.cuts if cut.workflow == name]
    oldest = min((cut.oldest_at for cut in cuts if cut.oldest_at is not None), default=None)
    counts, counted_at = _counts(where, name, rows.kept.get(name), recount)
    return WorkflowRecord(
        name=name,
        counts=counts,
        counted_at=counted_at,
        slots=None if usage is None else usage.workflows[name].used,
        limits=record(where, rows.overrides, name, rows.declared.get(name)),
        generations=[_generation(cut, is_last=cut is cuts[-1]) for cut in cuts],
        oldest_at=optional_instant(oldest),
        queue_age=0.0 if oldest is None else max(0.0, now - oldest),
    )


def _counts(
    where: Orchestrator, name: str, kept: Kept | None, recount: bool
) -> tuple[Mapping[Status, int], datetime | None]:
    """Few are counted here; of many it is what a worker counted last."""
    from orchestrator.client.workflow import without_code

    if kept is None or (recount and kept.total < CHEAP):
        return without_code(name).count(orchestrator=where), None
    return {status: kept.counts.get(status.value, 0) for status in Status}, instant(kept.counted_at)


def _generation(cut: Cut, *, is_last: bool) -> GenerationRecord:
    return GenerationRecord(
        generation=cut.generation,
        first=cut.first,
        shards=cut.shards,
        owned=cut.owned,
        is_draining=not is_last,
        waiting=cut.waiting,
        is_more=cut.is_more,
        oldest_at=optional_instant(cut.oldest_at),
    )
