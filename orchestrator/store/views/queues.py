"""How old the queues are.

Owns: the query. Does not own: taking from a queue (``store.control``), or how it is cut into shards.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array

# The index has the shards and versions of a workflow side by side: from one pair to the next is one look, and of each
# the first row of those awoken and the first of the new are looked at. Nothing is counted.
_NEXT = """LATERAL (SELECT i.shard, i.version FROM orchestrator_instances i
  WHERE i.account = %(account)s::text AND i.workflow = {}.workflow AND i.status = 'queued' {}
  ORDER BY i.shard, i.version LIMIT 1) n"""
_OLDEST = f"""
WITH RECURSIVE w AS (SELECT unnest(%(workflows)s::text[]) AS workflow),
s(workflow, shard, version) AS (
  SELECT w.workflow, n.shard, n.version FROM w, {_NEXT.format("w", "")}
  UNION ALL
  SELECT s.workflow, n.shard, n.version FROM s, {_NEXT.format("s", "AND (i.shard, i.version) > (s.shard, s.version)")})
SELECT s.workflow, extract(epoch FROM min(q.queued_at))::float8
FROM s CROSS JOIN (VALUES (true), (false)) AS a(awoken), LATERAL (
  SELECT i.queued_at FROM orchestrator_instances i WHERE i.account = %(account)s::text AND i.workflow = s.workflow
    AND i.shard = s.shard AND i.version = s.version AND i.awoken = a.awoken AND i.status = 'queued'
  ORDER BY i.queued_at LIMIT 1) q
GROUP BY s.workflow
"""


def oldest(connection: Connection, account: str, workflows: Sequence[str]) -> dict[str, float]:
    """When the oldest queued instance of each of these workflows was queued, epoch seconds; those without are left
    out."""
    parameters = {"account": account, "workflows": array(workflows, "text")}
    return {row[0]: row[1] for row in session.rows(connection, _OLDEST, parameters)}
