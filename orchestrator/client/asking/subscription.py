"""Subscriptions: the lifecycle events of one instance from a cursor on, and then as they come.

Owns: reading pages, the cursor, the filter, the end, and waiting (in a thread or on a loop). Does not own: what the
events are (``workflow.lifecycle``), nor the thread that wakes who waits (``followers``).

A subscription holds one page of events at most, however slow its consumer is: the next is read when that is used up.
It may be dropped at any time; nothing has to be closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.client.followers import Follower
from orchestrator.client.orchestrator import Orchestrator, offload
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.workflow.lifecycle import NUMBERS, PER_SEQ, LifecycleEvent, events
from orchestrator.workflow.status import FINISHED

START = -1
"""The cursor before the first event."""
_LAST = 2**63 - 1  # what Postgres counts to


class Portion(NamedTuple):
    """What one read gave: events, the cursor after them, and whether that is the end, or more is there already."""

    events: list[LifecycleEvent]
    cursor: int
    seq: int
    is_over: bool
    is_partial: bool


class _Subscription:
    """What both kinds share. ``find`` gives the uuid of the instance, or raises ``InstanceNotFound``."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        name_id: str,
        find: Callable[[], UUID],
        cursor: int | None,
        types: Iterable[str] | None,
    ) -> None:
        self._orchestrator = orchestrator
        self._name_id = name_id
        self._find = find
        self._instance: UUID | None = None
        self._cursor = checked_cursor(cursor)
        self._types = checked_types(types)
        self._ready: deque[LifecycleEvent] = deque()
        self._follower: Follower | None = None
        self._is_over = False
        self._is_caught_up = False

    def _read(self) -> Portion:
        """The next page. Raises ``InstanceNotFound`` once the instance is gone."""
        from orchestrator.store.records import lifecycle

        is_first = self._instance is None
        instance = self._instance or self._find()
        with self._orchestrator.lanes.statement() as connection:
            page = lifecycle.page(connection, instance, (self._cursor + 1) // PER_SEQ)
        if page is None:
            raise InstanceNotFound(self._name_id)
        self._instance = instance
        record = page.record
        if is_first and self._cursor >= PER_SEQ * (record.seq + 1):
            raise InvalidConfig(
                f"cursor {self._cursor} is beyond everything that happened to instance {self._name_id!r}: it is of "
                "another instance, perhaps of a deleted one with the same id. Subscribe without a cursor."
            )
        told = events(record, self._cursor, page.until)
        cursor = max([self._cursor, *(event.event_id for event in told)])
        if page.until is not None:
            cursor = max(cursor, PER_SEQ * page.until + PER_SEQ - 1)
        is_over = page.until is None and record.status in FINISHED
        return Portion(told, cursor, record.seq, is_over, page.until is not None)

    def _take(self, portion: Portion) -> None:
        wanted = self._types
        self._ready.extend(event for event in portion.events if wanted is None or event.type in wanted)
        self._cursor = portion.cursor
        self._is_over = portion.is_over
        self._is_caught_up = not portion.is_partial
        if self._follower is not None:
            self._follower.seq = portion.seq
        if self._is_over:
            self._leave()

    def _follow(self, seq: int, wake: Callable[[], None]) -> None:
        self._follower = Follower(str(self._instance), seq, wake)
        self._orchestrator.followers.add(self._follower)

    def _leave(self) -> None:
        self._is_over = True
        follower, self._follower = self._follower, None
        if follower is not None:
            self._orchestrator.followers.leave(follower)


class Subscription(_Subscription):
    """An iterator of lifecycle events. It blocks until there is one, and ends with the end of the instance."""

    _woken: threading.Event

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> LifecycleEvent:
        while not self._ready:
            if self._is_over:
                raise StopIteration
            try:
                self._wait()
                self._take(self._read())
            except BaseException:
                self._leave()
                raise
        return self._ready.popleft()

    def begin(self) -> Subscription:
        """Read the first page now. Raises ``InstanceNotFound`` and ``InvalidConfig``."""
        self._take(self._read())
        return self

    def close(self) -> None:
        """End it; what was read and not yet taken is dropped."""
        self._ready.clear()
        self._leave()

    def _wait(self) -> None:
        """Until there may be more than was read."""
        if not self._is_caught_up:
            return
        if self._follower is None:  # what comes before it is one is found by the read that follows
            self._woken = threading.Event()
            self._follow(START, self._woken.set)
            return
        self._woken.wait()
        self._woken.clear()
        self._follower.check()


class AsyncSubscription(_Subscription):
    """An async iterator of lifecycle events, which ends with the end of the instance. Reads in a thread."""

    _woken: asyncio.Event

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> LifecycleEvent:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            try:
                await self._wait()
                self._take(await offload(self._read))
            except asyncio.CancelledError:  # who has cancelled one wait may come back for the next
                raise
            except BaseException:
                self._leave()
                raise
        return self._ready.popleft()

    async def aclose(self) -> None:
        """End it; what was read and not yet taken is dropped."""
        self._ready.clear()
        self._leave()

    async def _wait(self) -> None:
        if not self._is_caught_up:
            return
        if self._follower is None:
            await self._orchestrator.afollowers()
            self._woken = asyncio.Event()
            self._follow(START, _waker(asyncio.get_running_loop(), self._woken))
            return
        await self._woken.wait()
        self._woken.clear()
        self._follower.check()


def _waker(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits on it
            loop.call_soon_threadsafe(event.set)

    return wake


def checked_cursor(cursor: Any) -> int:
    """The cursor as a number. Raises ``InvalidConfig``."""
    if cursor is None:
        return START
    if isinstance(cursor, bool) or not isinstance(cursor, int) or not 0 <= cursor <= _LAST:
        raise InvalidConfig(
            f"cursor is {cursor!r}; it must be the event_id of an event, or None for all events"
        )
    return cursor


def checked_types(types: Iterable[str] | None) -> frozenset[str] | None:
    """The types as a set; ``None`` means all. Raises ``InvalidConfig`` for unknown ones."""
    if types is None:
        return None
    chosen = frozenset((types,) if isinstance(types, str) else types)
    unknown = sorted(repr(each) for each in chosen if each not in NUMBERS)
    if unknown:
        raise InvalidConfig(
            f"there is no type of event called {', '.join(unknown)}; there are {', '.join(NUMBERS)}"
        )
    return chosen
