"""The batched Redis transport: one fetch brings as many messages as the worker has free slots.

Owns: how many messages are fetched at once, and which class serves a URL. Does not own: the rest of kombu's Redis
transport, whose keys, formats, connections and fanout stay as they are, so that stock workers can share the queues.

An idle channel waits in BRPOP, as kombu does. A message that comes this way may not be alone: from then on the
channel asks with ``RPOP key N``, one command per queue and all in one round trip, until nothing is left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from queue import Empty
from typing import TYPE_CHECKING, Any

import redis
from celery.app import amqp
from celery.worker import state
from kombu.connection import Connection as StockConnection
from kombu.transport import redis as stock
from kombu.utils.json import loads

from orchestrator.dispatch.pool import TaskPool
from orchestrator.ports import monotonic

logger = logging.getLogger(__name__)

MOST = 200
"""Messages one fetch brings at most: what is in one hand-full holds up the worker's remote control."""

if TYPE_CHECKING:
    _Base = Any
else:
    _Base = object


class _Batched(_Base):  # type: ignore[misc, unused-ignore]
    """Mixed into kombu's Redis channels.

    Batches only where a message is a hint (``ack_emulation: False``), where queues have one list each
    (``priority_steps`` of length one) and take turns (the default ``queue_order_strategy``), and in the worker of a
    ``TaskPool``, whose free slots are known. Everywhere else it does what kombu's channel does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_busy = False  # there was something in the last answer
        # Messages to ask for: doubles with every full answer, so that a burst spreads over the workers that wait.
        self._eager = 1
        # Queue and count of each RPOP that is under way; empty while it is a BRPOP.
        self._asked: tuple[tuple[str, int], ...] = ()
        super().__init__(*args, **kwargs)
        is_hint = not self.ack_emulation and len(self.priority_steps) == 1
        self._may_batch = is_hint and self.queue_order_strategy == "round_robin"

    def _brpop_start(self, timeout: float | None = None) -> None:
        self._asked = ()  # those of a connection that broke get no answer any more
        room = self._room() if self._is_busy and timeout is None else 0
        if room < 1:
            super()._brpop_start(*(() if timeout is None else (timeout,)))
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        asked = tuple(shares(queues, min(room, self._eager)))
        if not asked:
            return
        # By hand: kombu prefixes keys in commands that a client executes, and these are sent past it.
        commands = [("RPOP", f"{self.global_keyprefix}{queue}", count) for queue, count in asked]
        connection = self.client.connection
        self._in_poll, self._asked, self._brpop_sent_at = connection, asked, monotonic()
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> Any:
        asked, self._asked = self._asked, ()
        self._is_busy = False
        if not asked:
            found = super()._brpop_read(**options)
            self._is_busy = self._may_batch
            return found
        answers: list[tuple[str, bytes]] = []
        try:
            self._read_answers(asked, answers)
        finally:
            self._in_poll = None
            # Also those that came before the connection broke: nobody else will see them.
            self._deliver_all(answers)
            self._flush_brpop_reauth()
        is_full = len(answers) >= sum(count for _, count in asked)
        self._eager = min(MOST, 2 * self._eager) if is_full else 1
        if not answers:
            raise Empty
        self._is_busy = True
        self._queue_cycle.rotate(asked[0][0])
        return True

    def _read_answers(self, asked: tuple[tuple[str, int], ...], answers: list[tuple[str, bytes]]) -> None:
        connection = self.client.connection
        refused: Exception | None = None
        try:
            for queue, _ in asked:
                try:
                    found = self.client.parse_response(connection, "RPOP")
                except redis.ResponseError as error:  # the answers to the others follow
                    refused = error
                else:
                    answers.extend((queue, item) for item in found or ())
        except self.connection_errors:
            connection.disconnect()
            raise
        if refused is not None:
            self._refuse(refused)

    def _refuse(self, error: Exception) -> None:
        """Redis before 6.2 does not know RPOP with a count; another error is kombu's to handle, by BRPOP."""
        if "wrong number of arguments" not in str(error):
            raise error
        logger.warning("This Redis is older than 6.2: messages are fetched one by one (%s).", error)
        self._may_batch = False

    def _deliver_all(self, answers: list[tuple[str, bytes]]) -> None:
        """Deliver each, or drop it if it is no message; an error in one does not take the others with it, and the first
        is raised at the end."""
        pool, raised = TaskPool.current, None
        with nullcontext() if pool is None else pool.together():
            for queue, item in answers:
                try:
                    message = parsed(item)
                except Exception:
                    logger.exception("Dropped what is no message from queue %r: %.200r", queue, item)
                    continue
                try:
                    self.connection._deliver(message, queue)
                except Exception as error:
                    raised = raised or error
        if raised is not None:
            raise raised

    def _room(self) -> int:
        """Messages that would begin at once."""
        pool = TaskPool.current
        if pool is None:
            return 0
        room = pool.limit - len(state.reserved_requests)
        credit = self.qos.can_consume_max_estimate()
        return room if credit is None else min(room, int(credit))


def parsed(item: bytes) -> dict[str, Any]:
    """A message as kombu wants it; ``ValueError`` if it is none."""
    # kombu's own loads calls a function for every object, to revive what is marked by this.
    message = loads(item) if b"__type__" in item else json.loads(item.decode())
    properties = message.get("properties") if isinstance(message, dict) else None
    if not isinstance(properties, dict) or "delivery_tag" not in properties:
        raise ValueError("it has no properties with a delivery tag")
    return message


def shares(queues: list[str], room: int) -> Iterator[tuple[str, int]]:
    """How ``room`` is split among ``queues``, evenly; the first ones get what does not divide. Those that get nothing
    are left out: their turn comes as the queues rotate."""
    if queues:
        each, more = divmod(room, len(queues))
        for at, queue in enumerate(queues):
            count = each + (at < more)
            if count:
                yield queue, count


class Channel(_Batched, stock.Channel):  # type: ignore[misc, unused-ignore]
    """``redis``, ``rediss`` and unix sockets."""


class SentinelChannel(_Batched, stock.SentinelChannel):  # type: ignore[misc, unused-ignore]
    """Sentinel."""


class Poller(stock.MultiChannelPoller):  # type: ignore[misc, unused-ignore]
    """kombu's poller, which tells the pool when it stands still for want of a slot, and reads what was asked for.

    A native task that ends wakes Celery's hub by itself; one placed by the engine does not, and a full worker would
    look again only with the hub's next timer, up to a second later.
    """

    def on_readable(self, fileno: int) -> None:
        """Read an answer. What an RPOP brings is gone from Redis: it is read although there may be no room any more."""
        channel, command = self._fd_to_chan.get(fileno, (None, None))
        if command == "BRPOP" and channel._asked:
            channel.handlers[command]()
        else:
            super().on_readable(fileno)

    def _pause_brpop(self, channel: Any, fileno: int) -> None:
        if not channel._asked:
            super()._pause_brpop(channel, fileno)

    def on_poll_start(self) -> None:
        """Called whenever the hub is about to wait."""
        super().on_poll_start()
        pool, paused = TaskPool.current, {channel for channel, *_ in self._paused_brpop.values()}
        idle = [c for c in self._channels if c.active_queues and (c in paused or not c._in_poll)]
        if pool is None or not idle:
            return
        pool.is_awaited = True
        # Freed just before: nobody will wake us for that.
        if any(channel.qos.can_consume() for channel in idle):
            pool.vacated()


class Transport(stock.Transport):  # type: ignore[misc, unused-ignore]
    """kombu's Redis transport with batched channels."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle: Any = Poller()


class SentinelTransport(stock.SentinelTransport, Transport):  # type: ignore[misc, unused-ignore]
    """kombu's Sentinel transport with batched channels."""

    Channel = SentinelChannel


BATCHED: dict[str, type] = {"redis": Transport, "rediss": Transport, "sentinel": SentinelTransport}
"""By the scheme of a URL (``redis+socket`` is ``redis`` to kombu). All others keep their own."""


class Connection(StockConnection):  # type: ignore[misc, unused-ignore]
    """A connection whose URL alone names the transport: what kombu does for a scheme (TLS for ``rediss``, several
    URLs to fail over to) stays, and only the class behind it is another."""

    def get_transport_cls(self) -> Any:
        """The batched class of the URL's scheme, or kombu's."""
        return BATCHED.get(self.transport_cls) or super().get_transport_cls()


class AMQP(amqp.AMQP):  # type: ignore[misc, unused-ignore]
    """Given to a Celery app as ``amqp``, lets it connect with :class:`Connection`."""

    Connection = Connection
    BrokerConnection = Connection
