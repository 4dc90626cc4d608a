"""How calls travel from any thread to Celery's own: in order, in batches, with one wake-up per batch.

Owns: the queue of calls, who makes them (the worker's hub, a thread where there is none, the stopping thread at
the end), and that one that raises does not take the others with it. Does not own what is called.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.utils.log import get_logger

logger = get_logger(__name__)


class Outbox:
    """Calls for Celery's own thread.

    Celery's hub is not safe to enter from elsewhere, and a publish or an acknowledgement would block the event
    loop. Where the worker has no hub, one thread of its own makes the calls.
    """

    def __init__(self) -> None:
        self.hub: Any = None
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._rung = False
        self._closing = False
        self._spinning = False
        self._bell = threading.Event()
        # Re-entrant: a signal handler may stop the pool in the middle of a delivery.
        self._lock = threading.RLock()
        self._carrier: ThreadPoolExecutor | None = None

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        self._calls.append((function, args))
        if not self._rung:
            self._rung = True
            self._ring()

    def _ring(self) -> None:
        if self._closing and not self._spinning:
            self._bell.set()
        elif self.hub is not None:
            self.hub.call_soon(self.deliver)  # wakes the hub's poller, since kombu 5.7
        else:
            with self._lock:
                if self._carrier is None:
                    self._carrier = ThreadPoolExecutor(1, "orchestrator-callbacks")
            self._carrier.submit(self.deliver)

    def deliver(self) -> None:
        """Make the calls that were waiting. Those posted meanwhile have rung again and wait for their turn."""
        with self._lock:
            self._rung = False
            try:
                for _ in range(len(self._calls)):
                    function, args = self._calls.popleft()
                    try:
                        function(*args)
                    except Exception:
                        logger.exception("a callback of Celery raised: %r", function)
            except IndexError:
                pass  # a signal handler delivered the rest
            except BaseException:  # the worker is told to exit: the rest must not stay behind
                self._rung = True
                self._ring()
                raise

    def take_over(self, spin: bool) -> None:
        """From now on the calling thread delivers, in :meth:`wait`: Celery no longer spins the hub.

        With ``spin`` it spins the hub itself, so that acknowledgements leave at once, buffered events are flushed,
        and a message that the cancelled consumer still pops is put back. Not in a signal handler, which may have
        interrupted the hub in the middle of a read.
        """
        self._spinning = spin and self.hub is not None
        self._closing = True
        if self._carrier is not None:
            self._carrier.shutdown()
        self.deliver()

    def wake(self, _: Any = None) -> None:
        """Let :meth:`wait` return."""
        self.post(_nothing)

    def wait(self) -> None:
        """Wait for calls, at most a second, and make them."""
        if self._spinning:
            try:
                self.hub.run_once()
            except Exception as error:  # the broker is gone; what is left needs no broker
                logger.warning("the connection was lost while the worker ended: %r", error)
                self._spinning = False
        else:
            # The limit covers a poster that had looked at `_closing` just before `take_over` set it.
            self._bell.wait(1.0)
            self._bell.clear()
        self.deliver()


def _nothing() -> None:
    pass
