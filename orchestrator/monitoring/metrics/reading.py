"""What is measured, read once for many scrapes.

Owns: the reading and its cost: some short statements, whatever the number of instances. Does not own: the series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.client.control.status import ControlStatus, status
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.ports import monotonic
from orchestrator.store.views import registered, totals


@dataclass(frozen=True)
class Reading:
    """The account at one moment. ``series`` are the totals of its workers (``telemetry``); ``lateness``, by workflow,
    for how many seconds its earliest alarm is due; ``read_at`` is on the monotonic clock."""

    control: ControlStatus
    series: Mapping[str, float]
    lateness: Mapping[str, float]
    took_s: float
    read_at: float = field(default_factory=monotonic)


def read(where: Orchestrator) -> Reading:
    """Read everything. Raises ``ServiceUnavailable``, ``SchemaNotMigrated``."""
    began = monotonic()
    account = where.settings.account
    control = status(where, recount=False)
    with where.lanes.statement() as connection:
        versions = [(row.name, row.version) for row in registered.versions(connection, account)]
        late = totals.lateness(connection, account, versions)
        series = totals.series(connection, account)
    return Reading(control, series, late, monotonic() - began)
