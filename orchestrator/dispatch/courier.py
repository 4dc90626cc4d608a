"""Carries hints out of the engine thread: it never waits for Redis.

Owns: the queue of outgoing hints and its thread. Does not own: messages (``publisher``) or the news channel
(``news``). What cannot be delivered is dropped: alarms make up for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from orchestrator.dispatch.foreign import signatures
from orchestrator.dispatch.news import News
from orchestrator.dispatch.publisher import Publisher
from orchestrator.failpoints import reach
from orchestrator.ports import HandOut, monotonic

logger = logging.getLogger(__name__)

BACKLOG_EVERY_S, BACKLOG_FRESH_S = 1.0, 5.0
AWAY_S = 15.0
"""Redis that did not answer is left alone for so long: steps may go through another broker, and must not wait."""
MOST = 100_000
"""Hints kept while the broker is slow; older ones are dropped, as if lost on the way."""


class Courier:
    """A ``Dispatcher`` that returns at once. What gathers while one delivery is under way shares the next."""

    def __init__(self, publisher: Publisher, news: News) -> None:
        self._publisher = publisher
        self._news = news
        self._steps: list[HandOut] = []
        self._turns: list[UUID] = []
        self._announced: list[UUID] = []
        self._changed: set[UUID] = set()
        self._is_followed = False
        self._followed_at = float("-inf")
        self._condition = threading.Condition()
        self._stopping = False
        self._backlogs: dict[str, tuple[int | None, float]] = {}
        self._thread = threading.Thread(target=self._run, name="orchestrator-courier", daemon=True)
        self._thread.start()

    def steps(self, handouts: Sequence[HandOut]) -> None:
        with self._condition:
            self._steps.extend(handouts)
            del self._steps[:-MOST]
            self._condition.notify()

    def coordinate(self, instances: Iterable[UUID]) -> None:
        with self._condition:
            self._turns.extend(instances)
            del self._turns[:-MOST]
            self._condition.notify()

    def announce(self, instances: Iterable[UUID]) -> None:
        with self._condition:
            self._announced.extend(instances)
            del self._announced[:-MOST]
            self._condition.notify()

    def changed(self, instances: Iterable[UUID]) -> None:
        if self._is_followed and len(self._changed) < MOST:
            with self._condition:
                self._changed.update(instances)
                self._condition.notify()

    def backlog(self, queue: str) -> int | None:
        """What waited in ``queue`` a moment ago. ``None`` at the first question, too: the answer is fetched after."""
        value, read_at = self._backlogs.setdefault(queue, (None, float("-inf")))
        return value if monotonic() - read_at < BACKLOG_FRESH_S else None

    def destination(self, signature: Any) -> str:
        return signatures.destination(signature)

    def heed(self, refused: signatures.Refused) -> None:
        """Tell ``refused`` of hand-outs that can never be sent."""
        self._publisher.refused = refused

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what is queued, then end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout)
        self._publisher.close()
        self._news.close()

    def _run(self) -> None:
        while True:
            with self._condition:
                if not (self._steps or self._turns or self._announced or self._changed or self._stopping):
                    self._condition.wait(BACKLOG_EVERY_S)
                if self._stopping and not (self._steps or self._turns or self._announced):
                    return
                steps, self._steps = self._steps, []
                turns, self._turns = self._turns, []
                announced, self._announced = self._announced, []
                changed, self._changed = self._changed, set()
            try:
                if steps:
                    reach("courier.before_publish")
                    self._publisher.steps(steps)
                    reach("courier.after_publish")
                if turns:
                    self._publisher.coordinate(turns)
                if announced:
                    self._news.announce(announced)
                if changed:
                    self._news.change(changed)
                self._look()
            except Exception:
                logger.exception("Delivering hints failed; they are dropped.")

    def _look(self) -> None:
        """Ask, once a second, whether anybody follows instances, and for the backlogs that somebody wanted to know."""
        if monotonic() - self._followed_at >= BACKLOG_EVERY_S:
            followed = self._news.is_followed()
            self._is_followed = bool(followed)
            self._followed_at = monotonic() + (AWAY_S if followed is None else 0.0)
        for queue, (_, read_at) in list(self._backlogs.items()):
            if monotonic() - read_at >= BACKLOG_EVERY_S:
                self._backlogs[queue] = (self._publisher.backlog(queue), monotonic())
