"""The events of an instance as server-sent events.

Owns: the stream: where it begins, heartbeats, its end, and that nothing is left of a client that went away. Does not
own: what is sent (``following``), or the page of events for who does not stream (``documents.events``).
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tornado.iostream import StreamClosedError

from orchestrator.client.asking.subscription import START, checked_cursor, checked_types
from orchestrator.errors import InvalidConfig, OrchestratorError
from orchestrator.monitoring.api.following import Feeds, Told
from orchestrator.monitoring.api.handlers import arguments
from orchestrator.monitoring.api.operations import EVENTS
from orchestrator.monitoring.documents import events
from orchestrator.monitoring.flower import JsonHandler
from orchestrator.monitoring.refusals import document_of, status_of
from orchestrator.monitoring.tab import Tab

RETRY_MS = 2000
"""After this long a browser connects again."""
SLOW_S = 60.0
"""A client that takes nothing for so long is let go."""

_feeds: weakref.WeakKeyDictionary[Tab, Feeds] = weakref.WeakKeyDictionary()


class EventsHandler(JsonHandler):
    """``…/events``: a stream, or for who accepts JSON a page."""

    async def get(self, name: str, id: str) -> None:
        given = arguments(EVENTS.parameters, self.request.query)
        after = self._after(given["after"])
        if "application/json" in self.request.headers.get("Accept", ""):
            self.answer(await self.offload(events.page, self.orchestrator, name, id, after, given["types"]))
            return
        if not 1 <= given["heartbeat"] <= 60:
            raise InvalidConfig(f"heartbeat is {given['heartbeat']}; it must be from 1 to 60 seconds")
        types, feeds = checked_types(given["types"] or None), self._all_feeds()
        feeds.check()
        standing = await self.offload(events.position, self.orchestrator, name, id, after)
        if standing.is_over:
            self.set_status(204)  # so a browser does not connect again
            self.finish()
            return
        self._gone = asyncio.Event()
        self._begin()
        await self._send(f"retry: {RETRY_MS}\n\n".encode())
        told = feeds.follow(name, id, START if after is None else after, standing.head)
        await self._stream(told, types, float(given["heartbeat"]))

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if hasattr(self, "_gone"):
            self._gone.set()

    def _after(self, given: int | None) -> int | None:
        """Where the browser was, else where the address says."""
        header = self.request.headers.get("Last-Event-ID", "").strip()
        try:
            after = int(header) if header else given
        except ValueError:
            raise InvalidConfig(f"Last-Event-ID is {header!r:.80}; it must be an event_id") from None
        if after is not None:
            checked_cursor(after)
        return after

    def _all_feeds(self) -> Feeds:
        return _feeds.setdefault(self.tab, Feeds(self.orchestrator))

    def _begin(self) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=UTF-8")
        self.set_header("Cache-Control", "no-store, no-transform")
        self.set_header("X-Accel-Buffering", "no")  # nginx would collect

    async def _stream(
        self, told: AsyncGenerator[Told, None], types: frozenset[str] | None, heartbeat: float
    ) -> None:
        """Send what is told until it ends or the client goes away."""
        gone = asyncio.ensure_future(self._gone.wait())
        async with aclosing(told) as coming:
            following = asyncio.ensure_future(_next(coming))
            try:
                while not self._gone.is_set():
                    await asyncio.wait(
                        (following, gone), timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not following.done():
                        await self._send(b": still here\n\n")
                        continue
                    one = following.result()
                    if one is None:
                        await self._send(b"event: end\ndata: {}\n\n")
                        self.finish()
                        return
                    if types is None or one.type in types:
                        await self._send(one.text)
                    following = asyncio.ensure_future(_next(coming))
            except StreamClosedError:
                pass
            except OrchestratorError as error:
                await self._fail(error)
            finally:
                gone.cancel()
                following.cancel()
                await asyncio.wait((following,))

    async def _fail(self, error: OrchestratorError) -> None:
        """The status is sent already: the error is the last message."""
        text = json.dumps(document_of(error, status_of(error)))
        await self._send(f"event: problem\ndata: {text}\n\n".encode())
        self.finish()

    async def _send(self, text: bytes) -> None:
        if self._gone.is_set():
            return
        self.write(text)
        try:
            await asyncio.wait_for(asyncio.shield(self.flush()), SLOW_S)
        except TimeoutError:
            self.request.connection.stream.close()
            raise StreamClosedError from None


async def _next(coming: AsyncGenerator[Told, None]) -> Told | None:
    """The next one; ``None`` after the last."""
    async for one in coming:
        return one
    return None
