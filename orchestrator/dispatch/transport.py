"""The batched Redis transport: one wake-up brings as many messages as the worker has room for.

Owns: fetching several messages where the stock transport fetches one. Does not own: anything else of kombu's Redis
transport, whose keys and formats stay as they are, so stock workers can share the queues. Only for channels that keep
no book of unacknowledged messages (``ack_emulation: False``): here a message is a hint.
"""

from __future__ import annotations

from time import monotonic  # noqa: TID251 (compared with kombu's own reading of it)
from typing import TYPE_CHECKING, Any

from celery.worker import state
from kombu.transport import redis as stock
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from orchestrator.dispatch.pool import TaskPool

MOST = 200
"""Messages one wake-up brings at most."""
PROMPT_S = 0.02
"""An answer that came this fast found a message waiting: there may be more."""

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object


class _Batched(_Base):  # type: ignore[misc, unused-ignore]
    """Mixed into kombu's Redis channels."""

    def _brpop_read(self, **options: Any) -> Any:
        waited = monotonic() - getattr(self, "_brpop_sent_at", 0.0)
        found = super()._brpop_read(**options)
        if found and not self.ack_emulation and (waited < PROMPT_S or self._was_full):
            self._was_full = self._fetch_more()
        return found

    _was_full = False

    def _fetch_more(self) -> bool:
        """Take what waits, at most what there is room for; whether there was any."""
        is_any = False
        with self.conn_or_acquire() as client:
            for queue in list(self.active_queues):
                room = _room()
                if room <= 0:
                    break
                for key in (self._q_for_pri(queue, priority) for priority in self.priority_steps):
                    for item in client.rpop(key, min(room, MOST)) or ():
                        is_any = True
                        self.connection._deliver(loads(bytes_to_str(item)), queue)
        return is_any


def _room() -> int:
    pool = TaskPool.current
    return 0 if pool is None else pool.limit - len(state.reserved_requests)


class BatchedChannel(_Batched, stock.Channel):  # type: ignore[misc, unused-ignore]
    """``redis``, ``rediss`` and unix sockets."""


class BatchedSentinelChannel(_Batched, stock.SentinelChannel):  # type: ignore[misc, unused-ignore]
    """Sentinel."""


class Transport(stock.Transport):  # type: ignore[misc, unused-ignore]
    Channel = BatchedChannel


class SentinelTransport(stock.SentinelTransport):  # type: ignore[misc, unused-ignore]
    Channel = BatchedSentinelChannel
