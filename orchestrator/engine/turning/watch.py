"""Watches the engine thread while workflow code runs in it: slow turns are logged with the line they stood on.

Owns: the watching thread, and what counts as slow. Does not own: what becomes of a slow instance (``coordinator``).
Blocking calls in workflow code cannot be refused, only seen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self
from uuid import UUID

from orchestrator.engine.stacks import stack_of
from orchestrator.ports import busy, monotonic

logger = logging.getLogger(__name__)

SLOW_S = 0.1
STUCK_S = 1.0
"""Code that stood still this long, or computed for ``SLOW_S``, is kept apart from others."""
LOOK_S = 0.05
FRAMES = 6
BASE_S = 0.02
"""How old the reading of CPU time may be that a turn is compared with: reading it is a system call."""
QUIET_S = 5.0
"""At most one slow turn is logged in this time: on an overloaded machine all of them are."""


class Watch:
    """``with watch.over(...):`` is used by one thread, one at a time; a daemon thread looks at it now and then."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._who: tuple[UUID, str] | None = None
        self._slow: Callable[[UUID], None] | None = None
        self._based_at = float("-inf")
        self._base = 0.0
        self._thread_id = 0
        self._seen: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator-watch", daemon=True)
        self._is_started = False
        self._said = float("-inf")

    def over(self, instance: UUID, workflow: str, slow: Callable[[UUID], None]) -> Self:
        """Run a piece of workflow code in a ``with``; ``slow(instance)`` is called if it was."""
        if not self._is_started:
            self._is_started = True
            self._thread_id = threading.get_ident()
            self._thread.start()
        self._slow = slow
        now = monotonic()
        if now - self._based_at > BASE_S:
            self._base, self._based_at = busy(), now
        self._who, self._since = (instance, workflow), now
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        since, self._since = self._since, None
        took = 0.0 if since is None else monotonic() - since
        if took > SLOW_S and (took > STUCK_S or busy() - self._base > SLOW_S):
            assert self._who is not None and self._slow is not None
            self._slow(self._who[0])

    def stuck_s(self) -> float:
        """How long the code that runs now has been running, seconds; 0 if none does."""
        since = self._since
        return 0.0 if since is None else monotonic() - since

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            since, who = self._since, self._who
            if since is None or who is None or since == self._seen or monotonic() - since < SLOW_S:
                continue
            if monotonic() - self._said < QUIET_S:
                self._seen = since
                continue
            stack = stack_of(self._thread_id, FRAMES)
            if self._since == since:  # else it stands elsewhere by now
                self._seen, self._said = since, monotonic()
                logger.warning(
                    "A turn of instance %s (%s) has taken over %.0f ms, standing at:\n%s",
                    *who,
                    (monotonic() - since) * 1000,
                    stack,
                )
