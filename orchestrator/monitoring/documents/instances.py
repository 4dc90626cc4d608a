"""A page of the instances of a workflow: by status, newest first, or by the beginning of their id.

Owns: the document, and the cursor of a search. Does not own: lists and their cursors (``client.listing``).
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.client.asking.history import instant, optional_instant
from orchestrator.client.listing import checked_limit, checked_statuses
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.records import Listed
from orchestrator.client.workflow import without_code
from orchestrator.errors import InvalidConfig
from orchestrator.monitoring.documents.values import Document, at
from orchestrator.store.views import searching
from orchestrator.workflow.language.names import MAX_SCHEDULED_ID
from orchestrator.workflow.status import Status

_SEARCHED = "id:"
"""What the cursor of a search begins with, before the last id; that of a list has no colon."""


def page(
    where: Orchestrator,
    name: str,
    *,
    statuses: Iterable[str] | None = None,
    prefix: str = "",
    limit: int = 100,
    cursor: str | None = None,
) -> Document:
    """At most ``limit`` (1 to 1,000) instances, and the ``cursor`` of the next page, ``None`` after the last.

    Without ``prefix`` the newest come first; with it those whose id begins so, in the order of their ids: the one with
    exactly that id is the first. Raises ``InvalidConfig`` for a status, limit or cursor that there is not.
    """
    wanted = list(statuses or ()) or None
    if prefix:
        found, more = _searched(where, name, wanted, prefix, limit, cursor)
    else:
        listed = without_code(name).list(wanted, limit, cursor, orchestrator=where)
        found = [(each.id, each.listed) for each in listed.items if each.listed is not None]
        more = listed.cursor
    return {"workflow": name, "instances": [_listed(*each) for each in found], "cursor": more}


def _searched(
    where: Orchestrator, name: str, statuses: list[str] | None, prefix: str, limit: int, cursor: str | None
) -> tuple[list[tuple[str, Listed]], str | None]:
    if len(prefix) > MAX_SCHEDULED_ID or "\0" in prefix:
        raise InvalidConfig(f"No instance id has more than {MAX_SCHEDULED_ID} characters, or a NUL.")
    if cursor is not None and not cursor.startswith(_SEARCHED):
        raise InvalidConfig("the cursor is of a list, not of a search for ids")
    limit = checked_limit(limit)
    wanted = None if statuses is None else checked_statuses(statuses)
    after = None if cursor is None else cursor.removeprefix(_SEARCHED).replace("\0", "")
    with where.lanes.statement() as connection:
        rows = searching.search(connection, where.settings.account, name, prefix, wanted, limit + 1, after)
    found = [
        (
            row.name_id,
            Listed(
                Status(row.status),
                row.version,
                instant(row.created_at),
                optional_instant(row.started_at),
                optional_instant(row.ended_at),
            ),
        )
        for row in rows[:limit]
    ]
    return found, _SEARCHED + found[-1][0] if len(rows) > limit else None


def _listed(id: str, known: Listed) -> Document:
    return {
        "id": id,
        "status": known.status.value,
        "version": known.version,
        "created_at": at(known.created_at),
        "started_at": at(known.started_at),
        "ended_at": at(known.ended_at),
    }
