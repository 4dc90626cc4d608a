"""The ways to the brokers of applications, for their tasks that are steps.

Owns: a connection for each app, and patience with a broker that is away. Does not own: the messages (``signatures``).

An app's own connections wait for a silent Redis for as long as the kernel does, which is a quarter of an hour, and
whoever carries hints would wait with them. So on Redis a task goes out through a connection that gives up in time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from orchestrator.dispatch.foreign import signatures
from orchestrator.ports import HandOut, monotonic

PAUSE_S = 2.0
"""After a failed task the others of its app are dropped at once for so long, or for as long as that one took: alarms
send them again, and other hints get their turn."""


class Silent(Exception):
    """The broker was away a moment ago: nobody waits for it."""


class Sender:
    """Sends one task at a time; safe for threads. ``options`` are those of a Redis transport, before the app's own."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._connections: dict[Any, Any] = {}
        self._silent_until: dict[Any, float] = {}

    def send(self, handout: HandOut, refused: signatures.Refused) -> None:
        """Send the task of this hand-out. Raises ``Silent``, and what ``signatures.send`` raises."""
        app = signatures.app_of(handout.signature)
        with self._lock:
            began = monotonic()
            if began < self._silent_until.get(app, began):
                raise Silent
            try:
                signatures.send(handout, refused, self._connection(app))
            except Exception:
                now = monotonic()
                self._silent_until[app] = now + max(PAUSE_S, now - began)
                self._forget(app)
                raise

    def close(self) -> None:
        """Give the connections back. The next task opens new ones."""
        with self._lock:
            for app in list(self._connections):
                self._forget(app)

    def _connection(self, app: Any) -> Any:
        """One of ours on Redis; ``None``, which means the app's, elsewhere."""
        if app not in self._connections:
            self._connections[app] = self._opened(app)
        return self._connections[app]

    def _opened(self, app: Any) -> Any:
        options = {**self._options, **app.conf.broker_transport_options, "retry_on_timeout": False}
        connection = app.connection_for_write(transport_options=options)
        if connection.transport.driver_type == "redis":
            return connection
        connection.release()
        return None

    def _forget(self, app: Any) -> None:
        connection = self._connections.pop(app, None)
        if connection is not None:
            connection.release()
