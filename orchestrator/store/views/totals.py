"""What all workers of an account have counted, those that live and those that are gone; and how late alarms are.

Owns: these queries. Does not own: what a series means (``telemetry``).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array

_TOTALS = """
SELECT series, sum(value)::float8 FROM (
  SELECT c.key AS series, c.value::float8 AS value FROM orchestrator_workers w, json_each_text(w.totals::json) c
  WHERE w.account = %(account)s::text
  UNION ALL SELECT series, value FROM orchestrator_totals WHERE account = %(account)s::text) t
GROUP BY series
"""
# Of each version the first of its stretch of the alarm index.
_LATE = """
SELECT v.name, extract(epoch FROM clock_timestamp() - min(a.alarm_at))::float8
FROM unnest(%(workflows)s::text[], %(versions)s::text[]) AS v(name, version), LATERAL (
  SELECT i.alarm_at FROM orchestrator_instances i WHERE i.account = %(account)s::text AND i.workflow = v.name
    AND i.version = v.version AND i.alarm_at < 'infinity'::timestamptz ORDER BY i.alarm_at LIMIT 1) a
GROUP BY v.name
"""


def series(connection: Connection, account: str) -> dict[str, float]:
    """Every series, summed up."""
    return dict(session.rows(connection, _TOTALS, {"account": account}))


def lateness(connection: Connection, account: str, versions: Sequence[tuple[str, str]]) -> dict[str, float]:
    """For how many seconds the earliest alarm of each workflow (given as name and version) has been due; negative where
    it is yet to come. Workflows without an alarm are left out."""
    parameters = {
        "account": account,
        "workflows": array([each[0] for each in versions], "text"),
        "versions": array([each[1] for each in versions], "text"),
    }
    return dict(session.rows(connection, _LATE, parameters))
