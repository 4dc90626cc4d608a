"""Lists and counts of the instances of a workflow.

Owns: ``Workflow.list``, ``count`` and ``latest``, their checks, and the cursor as applications hold it. Does not own:
the queries (``store.records.listing``), one instance's verbs (``instance``).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.client.asking.history import instant, optional_instant
from orchestrator.client.asking.standing import Seen, definition_of
from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.orchestrator import Orchestrator, check_outside, current, offload
from orchestrator.client.records import Listed, Page
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.ports import monotonic
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.store.records.listing import Row

MOST = 1000
CHEAP = 10_000
"""As many instances are counted in some milliseconds."""
STALE_S, STALE_SHARE = 60.0, 100.0
"""No worker looks after counts that are older than this, plus so many times what counting took."""
_NEWEST_FIRST, _OLDEST_FIRST = b"d", b"a"


class Listing:
    """The part of a workflow that lists its instances."""

    definition: Definition

    def list(
        self,
        status: Status | str | Iterable[Status | str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
        newest_first: bool = True,
        *,
        orchestrator: Orchestrator | None = None,
    ) -> Page:
        """A page of the instances, of all versions, in the order of their creation: ``items`` with what the list knew
        (``instance.listed``), and the ``cursor`` of the next page, ``None`` after the last.

        ``status`` is one or several; ``limit`` is from 1 to 1,000. What is created meanwhile is in no later page of a
        list of the newest first, and is neither left out nor given twice in any. Raises ``InvalidConfig``.
        """
        check_outside("list")
        from orchestrator.store.records import listing

        statuses, beyond = checked_statuses(status), checked_cursor(cursor, newest_first)
        limit = checked_limit(limit)
        where = orchestrator or current()
        account, name = where.settings.account, self.definition.name
        at = monotonic()
        with where.lanes.statement() as connection:
            rows = listing.page(
                connection, account, name, statuses, limit + 1, beyond, newest_first=newest_first
            )
        items = [_item(self.definition, where, row, at) for row in rows[:limit]]
        more = _cursor(rows[limit - 1].id, newest_first) if len(rows) > limit else None
        return Page(items, more)

    async def alist(
        self,
        status: Status | str | Iterable[Status | str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
        newest_first: bool = True,
        **options: Any,
    ) -> Page:
        """``list`` for asyncio."""
        check_outside("alist")
        return await offload(self.list, status, limit, cursor, newest_first, **options)

    def latest(self, *, orchestrator: Orchestrator | None = None) -> WorkflowInstance:
        """The instance that was created last. Raises ``InstanceNotFound`` if there is none."""
        check_outside("latest")
        newest = self.list(limit=1, orchestrator=orchestrator).items
        if not newest:
            raise InstanceNotFound("latest", f"workflow {self.definition.name!r} has no instances")
        return newest[0]

    async def alatest(self, **options: Any) -> WorkflowInstance:
        """``latest`` for asyncio."""
        check_outside("alatest")
        return await offload(self.latest, **options)

    def count(self, exact: bool = False, *, orchestrator: Orchestrator | None = None) -> dict[Status, int]:
        """How many instances there are in each status, of all versions; 0 where there is none.

        Up to ten thousand instances are counted here and now. Of more than that, without ``exact``, the answer is what
        a worker counted last: ten to fifteen seconds ago, or fifty times as long as counting takes, where that is more.
        If no worker has counted for a minute (a hundred times as long), it is done here. ``exact`` counts them all,
        from the index alone: some hundred milliseconds for a million.
        """
        check_outside("count")
        where = orchestrator or current()
        found = None if exact else self._kept(where)
        if found is None:
            found = self._counted(where)
        return {status: found.get(status.value, 0) for status in Status}

    def _kept(self, where: Orchestrator) -> Mapping[str, int] | None:
        """What was counted last, if counting anew would take longer than reading it, and it is not out of date."""
        from orchestrator.store.control import counts

        with where.lanes.statement() as connection:
            kept = counts.read_one(connection, where.settings.account, self.definition.name)
        if kept is None or kept.total < CHEAP:
            return None
        is_fresh = where.now() - kept.counted_at < STALE_S + STALE_SHARE * kept.took_s
        return kept.counts if is_fresh else None

    def _counted(self, where: Orchestrator) -> Mapping[str, int]:
        """All of them counted; where that took long, it is kept for others, who then need not."""
        from orchestrator.store.control import counts
        from orchestrator.store.records import listing

        account, name = where.settings.account, self.definition.name
        began = monotonic()
        with where.lanes.statement() as connection:
            found = listing.count(connection, account, name)
        if sum(found.values()) >= CHEAP:
            with where.lanes.statement() as connection:
                counts.keep(connection, account, name, found, monotonic() - began)
        return found

    async def acount(self, exact: bool = False, **options: Any) -> dict[Status, int]:
        """``count`` for asyncio."""
        check_outside("acount")
        return await offload(self.count, exact, **options)


def _item(definition: Definition, where: Orchestrator, row: Row, at: float) -> WorkflowInstance:
    status = Status(row.status)
    seen = Seen(str(row.id), float("-inf") if status in FINISHED else at)
    instance = WorkflowInstance(definition_of(definition, row.version), row.name_id, where, seen)
    instance.listed = Listed(
        status,
        row.version,
        instant(row.created_at),
        optional_instant(row.started_at),
        optional_instant(row.ended_at),
    )
    return instance


def checked_limit(limit: Any) -> int:
    """The limit of a page. Raises ``InvalidConfig``."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
        raise InvalidConfig(f"limit is {limit!r}; it must be a whole number from 1 to {MOST:,}")
    return limit


def checked_status(status: Status | str) -> Status:
    """The one status that is asked for. Raises ``InvalidConfig``."""
    (one,) = checked_statuses((status,))
    return one


def checked_statuses(status: Status | str | Iterable[Status | str] | None) -> tuple[Status, ...]:
    """The statuses that are asked for; all of them for ``None``. Raises ``InvalidConfig``."""
    if status is None:
        return tuple(Status)
    is_one = isinstance(status, str) or not isinstance(status, Iterable)
    chosen: tuple[Any, ...] = (status,) if is_one else tuple(status)
    unknown = [repr(each) for each in chosen if each not in tuple(Status)]
    if unknown or not chosen:
        what = f"there is no status {', '.join(unknown)}" if unknown else "status is empty"
        raise InvalidConfig(f"{what}; it must be one or several of {', '.join(Status)}")
    return tuple(dict.fromkeys(Status(each) for each in chosen))


def _cursor(id: UUID, newest_first: bool) -> str:
    way = _NEWEST_FIRST if newest_first else _OLDEST_FIRST
    return base64.urlsafe_b64encode(way + id.bytes).rstrip(b"=").decode()


def checked_cursor(cursor: str | None, newest_first: bool) -> UUID | None:
    """The id that a cursor stands for. Raises ``InvalidConfig``."""
    if cursor is None:
        return None
    try:
        told = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (AttributeError, UnicodeError, binascii.Error):
        told = b""
    if len(told) != 17 or told[:1] not in (_NEWEST_FIRST, _OLDEST_FIRST):
        raise InvalidConfig(f"cursor is {cursor!r:.60}; it must be the cursor of a Page, or None")
    if told[:1] != (_NEWEST_FIRST if newest_first else _OLDEST_FIRST):
        raise InvalidConfig("the cursor is of a list in the other direction (newest_first)")
    return UUID(bytes=told[1:])
