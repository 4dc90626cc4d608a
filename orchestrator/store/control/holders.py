"""Instances that hold a slot, as their rows say: page by page, by id, and who may write all of their leases anew.

Owns: these queries. Does not own: leases (the Gatekeeper's), which statuses hold a slot (``workflow.status``). However
many instances have ended, only those that run are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.ports import Holder
from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.status import HOLDS_SLOT

_STATUSES = tuple(sorted(HOLDS_SLOT))
_FIRST = UUID(int=0)


class Stretch(NamedTuple):
    """Instances of one workflow and status, those with an id above ``after``."""

    workflow: str
    status: str
    after: UUID = _FIRST


# From one workflow to the next: as many steps in the index as there are workflows with instances.
_WORKFLOWS = """
WITH RECURSIVE found AS (
  (SELECT workflow FROM orchestrator_instances WHERE account = %(account)s
     AND created_at > '-infinity'::timestamptz ORDER BY workflow LIMIT 1)
  UNION ALL
  SELECT next.workflow FROM found CROSS JOIN LATERAL (
    SELECT i.workflow FROM orchestrator_instances i WHERE i.account = %(account)s AND i.workflow > found.workflow
      AND i.created_at > '-infinity'::timestamptz ORDER BY i.workflow LIMIT 1) AS next)
SELECT workflow FROM found
"""


def workflows(connection: Connection, account: str) -> list[str]:
    """The workflows of which there are instances, registered or not."""
    return [row[0] for row in connection.exec_driver_sql(_WORKFLOWS, {"account": account})]


def stretches(names: Iterable[str]) -> list[Stretch]:
    """All that these workflows may have of instances with a slot, from the beginning."""
    return [Stretch(name, status) for name in names for status in _STATUSES]


# A range of the list's index, whose order no other has. Told that the status is equal, Postgres would take the order of
# the primary key as well, and may follow that, over all that has ended. The values are known when it plans.
_PAGE = """
SELECT id FROM orchestrator_instances
WHERE account = %(account)s::text AND workflow = %(workflow)s::text AND created_at > '-infinity'::timestamptz
  AND (status, id) > (%(status)s::text, %(after)s::uuid) AND status <= %(status)s::text
ORDER BY status, id LIMIT %(limit)s::int8
"""


def page(
    connection: Connection, account: str, left: Sequence[Stretch], limit: int
) -> tuple[list[Holder], list[Stretch]]:
    """The next ``limit`` instances of these stretches, in their order, and what is left of them then (nothing: that was
    all)."""
    found: list[Holder] = []
    for place, (workflow, status, after) in enumerate(left):
        wanted = limit - len(found)
        parameters = {
            "account": account,
            "workflow": workflow,
            "status": status,
            "after": after,
            "limit": wanted,
        }
        rows = session.rows(connection, _PAGE, parameters)
        found += [Holder(row[0], workflow) for row in rows]
        if len(rows) == wanted:
            return found, [Stretch(workflow, status, rows[-1][0]), *left[place + 1 :]]
    return found, []


def still(connection: Connection, ids: Iterable[UUID]) -> set[UUID]:
    """Those of these instances that hold a slot now."""
    rows = connection.exec_driver_sql(
        "SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) AND status = ANY(%(statuses)s::text[])",
        {"ids": array(ids, "uuid"), "statuses": array(_STATUSES, "text")},
    )
    return {row[0] for row in rows}


def may_rebuild(connection: Connection, account: str) -> bool:
    """Whether this transaction, and no other until it ends, may write all leases of the account anew."""
    found = connection.exec_driver_sql(
        "SELECT pg_try_advisory_xact_lock(hashtextextended('orchestrator.leases:' || %(account)s::text, 0))",
        {"account": account},
    )
    return bool(found.scalar_one())
