"""What happened to an instance, as lifecycle events.

Owns: the document of an event, and a page of them, for who does not follow. Does not own: following
(``api.following``), nor what the events are (``workflow.lifecycle``).
"""

from __future__ import annotations

from typing import Any

from orchestrator.client.asking.subscription import checked_cursor
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import InstanceNotFound
from orchestrator.monitoring.documents.instance import find
from orchestrator.monitoring.documents.values import Document, at, info
from orchestrator.store.records import lifecycle
from orchestrator.workflow.lifecycle import PER_SEQ, LifecycleEvent, events
from orchestrator.workflow.status import FINISHED

_PLAIN = (
    "step_name",
    "count",
    "attempt",
    "output",
    "retry_delay",
    "duration",
    "event_type",
    "config",
    "params",
)


def event(told: LifecycleEvent) -> Document:
    """One event; what does not apply to its type is left out."""
    document: dict[str, Any] = {
        "instance_id": told.instance_id,
        "event_id": told.event_id,
        "timestamp": at(told.timestamp),
        "type": told.type,
    }
    for name in _PLAIN:
        if (found := getattr(told, name)) is not None:
            document[name] = found
    if told.error is not None:
        document["error"] = info(told.error)
    return document


def page(where: Orchestrator, name: str, id: str, after: int | None = None) -> Document:
    """The events after the ``event_id`` ``after`` that there are now, as many as go into a page. ``cursor`` is where
    the next page begins; ``is_over``: the instance has ended, and nothing is left after this page. Raises
    ``InstanceNotFound``, ``InvalidConfig``."""
    begin = checked_cursor(after)
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        found = lifecycle.page(connection, row.id, (begin + 1) // PER_SEQ)
    if found is None:
        raise InstanceNotFound(id)
    told = events(found.record, begin, found.until)
    last = max([begin, *(each.event_id for each in told)])
    if found.until is not None:
        last = max(last, PER_SEQ * found.until + PER_SEQ - 1)
    return {
        "workflow": name,
        "id": id,
        "events": [event(each) for each in told],
        "cursor": None if last < 0 else last,
        "has_more": found.until is not None,
        "is_over": found.until is None and found.record.status in FINISHED,
    }
