"""What happened to an instance, as lifecycle events.

Owns: the document of an event, and a page of them, for who does not follow. Does not own: following
(``api.following``), nor what the events are (``workflow.lifecycle``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from orchestrator.client.asking.subscription import checked_cursor
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.monitoring.documents.instance import cursor, find
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


class Position(NamedTuple):
    """``head``: a cursor up to which everything has happened. ``is_over``: nothing will come after the one given."""

    head: int
    is_over: bool


def position(where: Orchestrator, name: str, id: str, after: int | None = None) -> Position:
    """Where one who has seen everything up to ``after`` stands. Raises ``InstanceNotFound``, ``InvalidConfig``."""
    begin = checked_cursor(after)
    row = find(where, name, id)
    head = cursor(row)
    if begin > head:
        raise InvalidConfig(
            f"The event_id {begin} is beyond everything that happened to instance {id!r}: it is of another one, "
            "perhaps of a deleted one with the same id."
        )
    return Position(head, row.status in FINISHED and not page(where, name, id, after)["events"])


def page(
    where: Orchestrator, name: str, id: str, after: int | None = None, types: Collection[str] = ()
) -> Document:
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
        "events": [event(each) for each in told if not types or each.type in types],
        "cursor": None if last < 0 else last,
        "has_more": found.until is not None,
        "is_over": found.until is None and found.record.status in FINISHED,
    }
