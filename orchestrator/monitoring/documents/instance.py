"""One instance: where it stands, what it was given and gave, who is its kin, what may be done to it.

Owns: the document, finding the instance for the other ones, and the record of what operators did. Does not own: its
steps (``timeline``), its trace.
"""

from __future__ import annotations

from orchestrator.client.asking import blocked
from orchestrator.client.asking.history import audit_record
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import InstanceNotFound
from orchestrator.monitoring.documents import actions
from orchestrator.monitoring.documents.values import WHOLE, Document, at, error, info, rollback, value
from orchestrator.store.instances import Result
from orchestrator.store.records import audit as records
from orchestrator.store.views import standing
from orchestrator.store.views.standing import Standing
from orchestrator.workflow.language.names import check_instance_id
from orchestrator.workflow.lifecycle import PER_SEQ
from orchestrator.workflow.status import FINISHED

CHILDREN = 100
BUFFERED = 1000
AUDITED = 200


def instance(where: Orchestrator, name: str, id: str, *, most: int = WHOLE) -> Document:
    """The instance ``id`` of workflow ``name``. Of a value with over ``most`` bytes only its beginning is in it. Raises
    ``InstanceNotFound``, ``InvalidInstanceId``."""
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        children = standing.children(connection, row.id, CHILDREN + 1)
        inbox = standing.buffered(connection, row.id, BUFFERED)
    undone = rollback(row.rollback)
    return {
        "workflow": name,
        "id": row.name_id,
        "uuid": str(row.id),
        "version": row.version,
        "run": row.run,
        "status": row.status,
        "is_finished": row.status in FINISHED,
        "params": value(row.params, most),
        "output": value(row.output, most),
        "error": error(row.error),
        "rollback": undone,
        "blocked": _blocked(where, name, row),
        "created_at": at(row.created_at),
        "queued_at": at(row.queued_at) if row.status == "queued" else None,
        "started_at": at(row.started_at),
        "ended_at": at(row.ended_at),
        "expires_at": at(row.expires_at),
        "schedule": None
        if row.schedule is None
        else {"cron": row.schedule, "scheduled_time": at(row.scheduled_at)},
        "parent": None
        if row.parent_name is None
        else {"workflow": row.parent_workflow, "id": row.parent_name, "step": row.parent_key},
        "children": [
            {"workflow": each.workflow, "id": each.name_id, "step": each.key, "status": each.status}
            for each in children[:CHILDREN]
        ],
        "has_more_children": len(children) > CHILDREN,
        "buffered_events": [
            {"type": each.type, "count": each.number, "oldest_at": at(each.oldest_at)} for each in inbox
        ],
        "state_bytes": row.state_bytes,
        "cursor": cursor(row),
        "actions": actions.allowed(row.status, (undone or {}).get("outcome"), ending=row.ending),
    }


def find(where: Orchestrator, name: str, id: str) -> Standing:
    """The row of an instance. Raises ``InstanceNotFound``, ``InvalidInstanceId``."""
    check_instance_id(id, scheduled=True)
    with where.lanes.statement() as connection:
        row = standing.find(connection, where.settings.account, name, id)
    if row is None:
        raise InstanceNotFound(id, f"there is no instance with the id {id!r} of workflow {name!r}")
    return row


def cursor(row: Standing) -> int:
    """The ``event_id`` after which a subscription goes on where this row stands."""
    return PER_SEQ * row.seq + PER_SEQ - 1


def audit(where: Orchestrator, name: str, id: str) -> Document:
    """The verbs that changed the instance, the last ones, in order: who called them, and when."""
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        entries = records.of_instance(connection, row.id)
    found = [audit_record(*entry[1:]) for entry in entries[-AUDITED:]]
    return {
        "workflow": name,
        "id": id,
        "audit": [
            {"verb": each.verb, "at": at(each.at), "by": each.by, "detail": each.detail} for each in found
        ],
    }


def _blocked(where: Orchestrator, name: str, row: Standing) -> Document | None:
    if row.blocked is not None or row.status in FINISHED:
        return error(row.blocked)
    result = Result(
        row.id,
        row.name_id,
        row.status,
        row.output,
        row.error,
        row.rollback,
        row.blocked,
        row.version,
        row.created_at,
    )
    return info(blocked.why(where, name, result))
