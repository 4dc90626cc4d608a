"""Who follows which instance, and the one thread that wakes all of them.

Owns: the table of followers of this process, its subscription to changes, and the poll of Postgres without them. Does
not own: reading what has changed (each follower does, by its cursor), nor the two questions (they are given).

Changes and poll are hints: a follower that is woken reads its instance, and may find nothing new. The table holds
followers weakly: one that nobody holds any more is gone from it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError, ServiceUnavailable, rebuilt
from orchestrator.ports import monotonic

if TYPE_CHECKING:
    from orchestrator.dispatch.news import News, Subscription

logger = logging.getLogger(__name__)

POLL_S = 1.0
IDLE_S = 10.0
"""Without followers for so long, the thread ends, and workers announce no more changes."""
RETRY_S, RETRY_MOST_S = 1.0, 30.0
"""After this long without Redis it is tried again, doubling up to the second."""
PER_QUESTION = 1000

Heads = Callable[[Sequence[str]], "dict[str, int | None]"]
"""Reads the ``seq`` of instances; ``None`` for one that is gone."""


class Follower:
    """One who follows ``instance``, of which it has read everything up to ``seq``. ``wake`` must not block; it is
    called from another thread."""

    def __init__(self, instance: str, seq: int, wake: Callable[[], None]) -> None:
        self.instance = instance
        self.seq = seq
        self.wake = wake
        self._error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Wake it with an error of its own."""
        own = error
        if isinstance(error, OrchestratorError):
            own = rebuilt(type(error), error.args)
            own.__cause__ = error.__cause__
        self._error = own
        self.wake()

    def check(self) -> None:
        """Raise what it was woken with, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error


class Followers:
    """Safe for threads. Its thread is a daemon, started by the first follower."""

    def __init__(self, news: News, heads: Heads) -> None:
        self._news = news
        self._heads = heads
        self._lock = threading.Lock()
        self._table: dict[str, weakref.WeakSet[Follower]] = {}
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._closing = threading.Event()

    def add(self, follower: Follower) -> None:
        """Wake ``follower`` whenever there may be something new, from now on. Raises ``ServiceUnavailable`` once
        closed."""
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="orchestrator-followers", daemon=True)
                thread.start()
                self._thread = thread
            self._table.setdefault(follower.instance, weakref.WeakSet()).add(follower)

    def leave(self, follower: Follower) -> None:
        """Forget a follower."""
        with self._lock:
            self._table.get(follower.instance, weakref.WeakSet()).discard(follower)

    def close(self) -> None:
        """End the thread. Whoever still follows gets an error that says so."""
        self._closing.set()
        with self._lock:
            thread, subscription = self._thread, self._subscription
        self._fail(self._followed(), _closed())
        if subscription is not None:
            self._news.wake(subscription)
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * POLL_S)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # nobody must wait for a thread that is gone
            logger.exception("The thread that follows instances failed.")
            self._hear_no_more()  # before there may be another thread, whose subscription is its own
            with self._lock:
                self._thread = None
            self._fail(self._followed(), error)

    def _watch(self) -> None:
        retry_at, retry_s = 0.0, RETRY_S
        poll_at = busy_at = monotonic()
        while not self._closing.is_set():
            if self._subscription is None and monotonic() >= retry_at:
                if self._hear():
                    retry_s, poll_at = RETRY_S, monotonic()  # what was announced before was not heard
                else:
                    retry_at, retry_s = monotonic() + retry_s, min(2 * retry_s, RETRY_MOST_S)
            self._wake(set(self._heard(max(0.0, poll_at - monotonic()))))
            if monotonic() >= poll_at:
                poll_at = monotonic() + POLL_S
                followed = self._followed()
                busy_at = poll_at if followed else busy_at
                self._poll(followed)
            if poll_at - busy_at > IDLE_S and self._is_over():
                return
        self._hear_no_more()

    def _is_over(self) -> bool:
        """Whether there is really nobody; the next one to come gets a new thread, with a subscription of its own."""
        with self._lock:
            if self._table:
                return False
            self._thread = None
            subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
        return True

    def _hear(self) -> bool:
        subscription = self._news.subscribe(follow=True)
        with self._lock:
            self._subscription = subscription
        return subscription is not None

    def _heard(self, timeout: float) -> Sequence[str]:
        subscription = self._subscription
        if subscription is None:
            self._closing.wait(timeout)
            return ()
        names = subscription.heard(timeout)
        if not subscription.is_well:
            self._hear_no_more()
        return names

    def _hear_no_more(self) -> None:
        with self._lock:
            subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    # -- those who follow ----------------------------------------------------------------------------------

    def _followed(self) -> list[str]:
        """The instances that somebody follows; the others are forgotten."""
        with self._lock:
            for instance in [each for each, followers in self._table.items() if not followers]:
                del self._table[instance]
            return list(self._table)

    def _of(self, instance: str) -> list[Follower]:
        with self._lock:
            return list(self._table.get(instance, ()))

    def _wake(self, instances: Iterable[str]) -> None:
        for instance in instances:
            for follower in self._of(instance):
                follower.wake()

    def _fail(self, instances: Iterable[str], error: Exception) -> None:
        for instance in instances:
            for follower in self._of(instance):
                follower.fail(error)

    def _poll(self, instances: Sequence[str]) -> None:
        """Wake those that lack something. An error goes to all who were asked for."""
        for start in range(0, len(instances), PER_QUESTION):
            if self._closing.is_set():
                return
            chunk = instances[start : start + PER_QUESTION]
            try:
                heads = self._heads(chunk)
            except Exception as error:
                if not isinstance(error, OrchestratorError):
                    logger.exception("Asking for what is new failed.")
                self._fail(chunk, error)
                continue
            for instance, seq in heads.items():
                for follower in self._of(instance):
                    if seq is None or seq > follower.seq:
                        follower.wake()


def _closed() -> ServiceUnavailable:
    return ServiceUnavailable(
        "The Orchestrator was closed while the instance was followed. Subscribe again from the event_id you have "
        "seen last.",
        "orchestrator",
    )
