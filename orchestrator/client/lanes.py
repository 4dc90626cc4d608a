"""Connections for verbs that are one statement: in autocommit, kept open. One that was used within the last second
needs one round trip, else two: its plans are thrown away first.

Owns: how many are kept, that none is used which the server has closed, and what an error means for the caller's
data. Does not own: SQL, or verbs of several statements (they open a ``transaction``).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.store.session import Connection, Engine, Lane, is_contention, translated

MOST_IDLE = 4
"""Lanes kept for the next call. More are opened when more threads call at once, as far as the pool goes."""


class Lanes:
    """A stack of lanes: whoever needs one takes the one used last. Safe for threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: deque[tuple[Lane, Any]] = deque()
        self._closed = False

    @contextmanager
    def statement(
        self, kept: str = "Nothing was written.", unknown: str | None = None
    ) -> Iterator[Connection]:
        """A connection on which each statement is a transaction. Errors are explained as ``transaction`` does: with
        ``kept``, or with ``unknown`` once a statement may have been sent, since its answer may have been a yes.

        An ``OrchestratorError`` raised inside is about the caller's data: the connection is kept.
        """
        outcome = kept
        refusal: OrchestratorError | None = None
        try:
            lane = self._take()
            with lane.connection() as connection:
                driver = connection.connection.driver_connection
                outcome = unknown or kept
                try:
                    yield connection
                except OrchestratorError as error:
                    refusal = error  # raised below: a lane that sees an error closes
        except Exception as error:
            explained = translated(error, kept if is_contention(error) else outcome)
            if explained is error:
                raise
            raise explained from error
        self._give_back(lane, driver)
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # its traceback holds this frame

    def close(self) -> None:
        """Give the idle lanes back to the pool; those in use follow when their call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()

    def _take(self) -> Lane:
        while self._idle:
            try:
                lane, driver = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if not _is_stale(driver):
                return lane
            lane.close()
        return Lane(self._engine)

    def _give_back(self, lane: Lane, driver: Any) -> None:
        if not self._closed and len(self._idle) < MOST_IDLE:
            self._idle.append((lane, driver))
        else:
            lane.close()
        if self._closed:  # perhaps only now
            self.close()
            self._engine.dispose()  # this call may have connected anew, and nobody comes to close it


def _is_stale(driver: Any) -> bool:
    """Whether the server has said something to an idle connection: that it is closed, most likely. Saves the pool's
    question whether it still lives, which costs a round trip."""
    if driver.closed:
        return True
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(driver.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([driver.fileno()], [], [], 0)[0])
