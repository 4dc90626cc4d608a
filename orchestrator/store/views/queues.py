"""How old the queues are.

Owns: the query. Does not own: taking from a queue (``store.control``), or how it is cut into shards.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array

# Of each shard there is, one row by the queue index for those awoken and one for the new: nothing is counted.
_OLDEST = """
WITH RECURSIVE w AS (SELECT unnest(%(workflows)s::text[]) AS workflow),
s(workflow, shard) AS (
  SELECT w.workflow, (SELECT min(i.shard) FROM orchestrator_instances i WHERE i.account = %(account)s::text
    AND i.workflow = w.workflow AND i.status = 'queued') FROM w
  UNION ALL
  SELECT s.workflow, (SELECT min(i.shard) FROM orchestrator_instances i WHERE i.account = %(account)s::text
    AND i.workflow = s.workflow AND i.status = 'queued' AND i.shard > s.shard)
  FROM s WHERE s.shard IS NOT NULL)
SELECT s.workflow, extract(epoch FROM min(q.queued_at))::float8
FROM s CROSS JOIN (VALUES (true), (false)) AS a(awoken), LATERAL (
  SELECT i.queued_at FROM orchestrator_instances i WHERE i.account = %(account)s::text AND i.workflow = s.workflow
    AND i.shard = s.shard AND i.awoken = a.awoken AND i.status = 'queued'
  ORDER BY i.queued_at LIMIT 1) q
WHERE s.shard IS NOT NULL GROUP BY s.workflow
"""


def oldest(connection: Connection, account: str, workflows: Sequence[str]) -> dict[str, float]:
    """When the oldest queued instance of each of these workflows was queued, epoch seconds; those without are left
    out."""
    parameters = {"account": account, "workflows": array(workflows, "text")}
    return {row[0]: row[1] for row in session.rows(connection, _OLDEST, parameters)}
