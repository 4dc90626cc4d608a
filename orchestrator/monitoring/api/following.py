"""Following instances for many at once: one subscription for each instance that anybody follows.

Owns: the feeds of a Flower, what they keep of the latest events, and how a late or slow follower catches up. Does not
own: subscriptions (``client``), HTTP (``streams``).

A feed keeps the latest events, all those above its ``floor``, as the bytes that are sent. A follower whose cursor is
not below the floor is served from these. One that is below it reads what it lacks by a subscription of its own, until
it has caught up. So a thousand who watch one instance cost one read for each change, and one who never reads holds
nothing up and no memory.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from orchestrator.client.asking.subscription import START
from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import without_code
from orchestrator.errors import ServiceUnavailable
from orchestrator.monitoring.documents.events import event
from orchestrator.workflow.lifecycle import LifecycleEvent

KEPT = 1000
KEPT_BYTES = 1024 * 1024
"""What a feed keeps at most; more than one event of any size."""
FOLLOWERS = 1000
"""Who may follow at the same time through one Flower."""


class Told(NamedTuple):
    """An event as it is sent."""

    event_id: int
    type: str
    text: bytes


class Feed:
    """One followed instance. ``is_over``: nothing will come any more."""

    def __init__(self, instance: WorkflowInstance, floor: int) -> None:
        self.floor = floor
        self.followers = 0
        self.is_over = False
        self.error: Exception | None = None
        self._kept: deque[Told] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._instance = instance
        self._task = asyncio.ensure_future(self._pump(floor))

    async def after(self, cursor: int) -> AsyncGenerator[Told, None]:
        """Every event above ``cursor``, as they come, to the end of the instance. Raises what ends the feed."""
        while True:
            if cursor < self.floor:
                async with aclosing(self._instance.asubscribe(_given(cursor))) as behind:
                    async for found in behind:
                        cursor = found.event_id
                        yield told(found)
                        if cursor >= self.floor:
                            break
                    else:
                        return
            changed = self._changed
            for each in list(self._kept):
                if each.event_id > cursor:
                    cursor = each.event_id
                    yield each
            if cursor < self.floor or changed is not self._changed:
                continue
            if self.error is not None:
                raise self.error
            if self.is_over:
                return
            await changed.wait()

    def close(self) -> None:
        """End the subscription."""
        self._task.cancel()

    async def _pump(self, cursor: int) -> None:
        try:
            async with aclosing(self._instance.asubscribe(_given(cursor))) as subscription:
                async for found in subscription:
                    self._keep(told(found))
            self.is_over = True
        except Exception as error:
            self.error = error
        self._tell()

    def _keep(self, one: Told) -> None:
        self._kept.append(one)
        self._size += len(one.text)
        while len(self._kept) > KEPT or (self._size > KEPT_BYTES and len(self._kept) > 1):
            dropped = self._kept.popleft()
            self._size -= len(dropped.text)
            self.floor = dropped.event_id
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Feeds:
    """The feeds of one Flower, by instance. Belongs to its event loop."""

    def __init__(self, where: Orchestrator) -> None:
        self._where = where
        self._feeds: dict[tuple[str, str], Feed] = {}

    @property
    def followers(self) -> int:
        """How many follow now."""
        return sum(feed.followers for feed in self._feeds.values())

    def check(self) -> None:
        """Raise ``ServiceUnavailable`` if no more can follow."""
        if self.followers >= FOLLOWERS:
            raise ServiceUnavailable(f"{FOLLOWERS:,} follow instances through this Flower already.", "flower")

    async def follow(self, name: str, id: str, cursor: int, head: int) -> AsyncGenerator[Told, None]:
        """Every event of the instance above ``cursor``, then as they come, to its end. ``head`` is a cursor up to which
        everything has happened. Raises ``InstanceNotFound``, ``ServiceUnavailable``."""
        feed = self._feed(name, id, head)
        feed.followers += 1
        try:
            async with aclosing(feed.after(cursor)) as events:
                async for each in events:
                    yield each
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.close()
                if self._feeds.get((name, id)) is feed:
                    del self._feeds[name, id]

    def _feed(self, name: str, id: str, cursor: int) -> Feed:
        """The feed of an instance; a new one where there is none, or it has ended: the instance may have begun anew."""
        feed = self._feeds.get((name, id))
        if feed is None or feed.is_over or feed.error is not None:
            instance = WorkflowInstance(without_code(name).definition, id, self._where)
            feed = self._feeds[name, id] = Feed(instance, cursor)
        return feed


def told(found: LifecycleEvent) -> Told:
    """An event as a message of a stream."""
    text = json.dumps(event(found), ensure_ascii=True, allow_nan=False)
    return Told(found.event_id, found.type, f"id: {found.event_id}\ndata: {text}\n\n".encode())


def _given(cursor: int) -> int | None:
    return None if cursor == START else cursor
