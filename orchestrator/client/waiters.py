"""Who waits for the end of which instance, and the one thread that answers all of them.

Owns: the table of waiters of this process, the standing subscription to news, and the poll without news. Does not
own: the question to Postgres (it is given), nor what an answer means (``instance``).

News and poll are hints; an answer is always a row that was read afterwards. Who waits is registered before it is
read, so that nothing falls in between. News of instances for which nobody waits yet are remembered for a while: an
instance that was created here and has had no news since needs no look at its row.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError, ServiceUnavailable, rebuilt
from orchestrator.ports import monotonic

if TYPE_CHECKING:
    from orchestrator.dispatch.news import News, Subscription
    from orchestrator.store.instances import Result

logger = logging.getLogger(__name__)

POLL_S = 1.0
"""News come by Redis; without them Postgres is asked this often."""
IDLE_S = 60.0
"""Without waiters for so long, the thread ends and nothing is listened to; the next waiter starts it anew."""
RETRY_S, RETRY_MOST_S = 1.0, 30.0
"""After this long without Redis it is tried again, doubling up to the second."""
PER_QUESTION = 1000
REMEMBERED = 10_000
"""Ids with news that are remembered at least; twice as many at most."""

Answer = Future["Result | None"]
"""The row of a finished instance, or ``None`` if there is no such instance any more."""
Ask = Callable[[Sequence[str]], "dict[str, Result | None]"]
"""Reads those of these instances that are finished, or gone (``None``)."""


class Waiters:
    """Safe for threads. Its thread is a daemon, started by the first waiter."""

    def __init__(self, news: News, ask: Ask) -> None:
        self._news = news
        self._ask_postgres = ask
        self._lock = threading.Lock()
        self._table: dict[str, list[Answer]] = {}
        self._unread: list[str] = []
        self._thread: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._closing = threading.Event()
        self._young: set[str] = set()
        self._old: set[str] = set()
        self._heard_since = self._young_since = float("inf")

    # -- for those who wait ----------------------------------------------------------------------------------

    def register(self, instance: str) -> Answer:
        """Be told when this instance has ended. ``leave`` when the answer is no longer wanted.

        Raises ``ServiceUnavailable`` once closed, and ``RuntimeError`` if the system has no thread left to give.
        """
        answer: Answer = Future()
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="orchestrator-waiters", daemon=True)
                thread.start()  # may fail: then nobody has registered, and the next waiter tries again
                self._thread = thread
            self._table.setdefault(instance, []).append(answer)
        return answer

    def leave(self, instance: str, answer: Answer) -> None:
        """Forget a waiter. One that has its answer is forgotten already."""
        with self._lock:
            waiting = self._table.get(instance)
            if waiting is not None and answer in waiting:
                waiting.remove(answer)
                if not waiting:
                    del self._table[instance]

    def is_unfinished(self, instance: str, since: float) -> bool:
        """Whether an instance that was not finished at ``since`` (monotonic) is so still, for all that was heard.

        ``False`` says nothing: look at its row.
        """
        with self._lock:
            return self._heard_since <= since and instance not in self._young and instance not in self._old

    def ask_aside(self, instance: str, loop: asyncio.AbstractEventLoop) -> None:
        """Read the row of a registered instance in a thread of ``loop``, together with those that ask meanwhile."""
        with self._lock:
            self._unread.append(instance)
            if len(self._unread) > 1:
                return
        try:
            loop.run_in_executor(None, self._ask_unread)
        except BaseException:  # the loop is being closed; for others there is the poll
            with self._lock:
                self._unread.clear()
            raise

    def close(self) -> None:
        """End the thread. Whoever still waits gets an error that says so."""
        self._closing.set()
        with self._lock:
            left, self._table = self._table, {}
            thread, subscription = self._thread, self._subscription
        for answers in left.values():
            for answer in answers:
                _fail(answer, _closed())
        if subscription is not None:
            self._news.wake(subscription)
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * POLL_S)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # nobody must wait for a thread that is gone
            logger.exception("The thread that waits for results failed.")
            self._unsubscribe(self._subscription)
            with self._lock:
                self._thread = None
                left, self._table = self._table, {}
            for answers in left.values():
                for answer in answers:
                    _fail(answer, error)

    def _watch(self) -> None:
        subscription: Subscription | None = None
        retry_at, retry_s = 0.0, RETRY_S
        poll_at = busy_at = monotonic()
        while not self._closing.is_set():
            if subscription is None and monotonic() >= retry_at:
                subscription = self._subscribe()
                if subscription is not None:
                    retry_s, poll_at = RETRY_S, monotonic()  # what was announced before was not heard
                else:
                    retry_at, retry_s = monotonic() + retry_s, min(2 * retry_s, RETRY_MOST_S)
            names = self._listen(subscription, max(0.0, poll_at - monotonic()))
            if subscription is not None and not subscription.is_well:
                self._unsubscribe(subscription)
                subscription = None
            waited = self._waited(names)
            if monotonic() >= poll_at:
                poll_at = monotonic() + POLL_S
                waited = self._waited()
                busy_at = poll_at if waited else busy_at
            if poll_at - busy_at > IDLE_S and self._is_over():
                break
            self._ask(waited)
        self._unsubscribe(subscription)

    def _is_over(self) -> bool:
        """Whether there is really nobody; the next one to come gets a new thread."""
        with self._lock:
            if not self._table:
                self._thread = None
                self._forget()
            return not self._table

    def _listen(self, subscription: Subscription | None, timeout: float) -> list[str]:
        """News that came within ``timeout`` seconds; they are remembered."""
        if subscription is None:
            self._closing.wait(timeout)
            return []
        names = subscription.heard(timeout)
        if names:
            with self._lock:
                if len(self._young) >= REMEMBERED:
                    self._old, self._young = self._young, set()
                    self._heard_since, self._young_since = self._young_since, monotonic()
                self._young.update(names)
        return names

    def _waited(self, names: Iterable[str] | None = None) -> list[str]:
        """Those of ``names`` that somebody waits for; without names, all that somebody waits for."""
        with self._lock:
            return list(self._table) if names is None else [name for name in names if name in self._table]

    def _subscribe(self) -> Subscription | None:
        subscription = self._news.subscribe()
        with self._lock:
            self._subscription = subscription
            if subscription is not None:
                self._heard_since = self._young_since = monotonic()
        return subscription

    def _unsubscribe(self, subscription: Subscription | None) -> None:
        if subscription is None:
            return
        with self._lock:
            if self._subscription is subscription:
                self._forget()
        subscription.close()

    def _forget(self) -> None:
        """Nothing is listened to (any more), so nothing is known."""
        self._subscription = None
        self._heard_since = self._young_since = float("inf")
        self._young, self._old = set(), set()

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask_unread(self) -> None:
        with self._lock:
            instances, self._unread = self._unread, []
        self._ask(instances)

    def _ask(self, instances: Sequence[str]) -> None:
        """Read these and answer who waits for those that ended. An error goes to all who wait for any of them."""
        for start in range(0, len(instances), PER_QUESTION):
            if self._closing.is_set():
                return  # whoever waited has been told, and the connections are being closed
            chunk = instances[start : start + PER_QUESTION]
            try:
                rows = self._ask_postgres(chunk)
            except Exception as error:
                if not isinstance(error, OrchestratorError):
                    logger.exception("Asking for results failed.")
                for answer in self._taken(chunk):
                    _fail(answer, error)
            else:
                for instance, row in rows.items():
                    for answer in self._taken((instance,)):
                        if answer.set_running_or_notify_cancel():
                            answer.set_result(row)

    def _taken(self, instances: Iterable[str]) -> list[Answer]:
        """Those who wait for these, who do so no more."""
        with self._lock:
            return [answer for instance in instances for answer in self._table.pop(instance, ())]


def _fail(answer: Answer, error: Exception) -> None:
    """Each waiter raises an error of its own, if it is one of ours: a traceback belongs to one thread. Of any other
    error nobody knows how to make a second one: all waiters raise the same."""
    own = error
    if isinstance(error, OrchestratorError):
        own = rebuilt(type(error), error.args)
        own.__cause__ = error.__cause__
    if answer.set_running_or_notify_cancel():
        answer.set_exception(own)


def _closed() -> ServiceUnavailable:
    return ServiceUnavailable(
        "The Orchestrator was closed while its result was waited for. The instance goes on: ask for the result again.",
        "orchestrator",
    )
