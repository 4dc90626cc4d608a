"""Publishes hints: step and coordinate messages, many at once, from prebuilt envelopes of protocol 2.

Owns: the text of those messages, the one command per queue that sends them, and what happens when it fails
(nothing: a hint is lost, and counted; while the broker is away, nobody waits for it). Does not own when to publish,
nor any state: Postgres has it.

An envelope is made once per task, queue and label by Celery's own ``as_task_v2``; per message only the id, the body
and ``argsrepr`` are filled in. On Redis it goes to the queue's list as kombu would have put it there; on any other
transport through a kombu producer.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple
from uuid import UUID

import redis
from celery import Celery
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from orchestrator.dispatch.foreign import signatures
from orchestrator.dispatch.foreign.sender import Sender, Silent
from orchestrator.errors import ServiceUnavailable
from orchestrator.ports import HandOut, monotonic
from orchestrator.settings import Settings

logger = get_logger(__name__)

STEP_TASK = "orchestrator.step"
COORDINATE_TASK = "orchestrator.coordinate"
COORDINATE_BATCH = 50
"""Instances one coordinate message may name: few enough for a batch to spread over the workers."""

_LPUSH_BATCH = 500
_SHOWN_IDS = 5
_QUIET_S = 60.0
_PAUSE_S = 2.0
"""After a failed connection, hints are dropped at once for so long."""
_QUEUE_S = 1.0
"""For so long others wait for the first connection that a thread is opening."""
_CONNECT_S = 5.0
_EMBED = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

# Where the three own parts of a message go: no label or queue can look like these.
_ID, _BODY, _ARGS = "\0id", "\0body", "\0args"

# The user's own options win, but for the last: a retried publish says everything twice.
_REDIS_OPTIONS: dict[str, Any] = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "max_connections": 64,
}


class _Paused(Exception):
    """The broker was away a moment ago, or is being connected to: nobody waits for it."""


class _Letter(NamedTuple):
    """What one message has of its own."""

    envelope: _Envelope
    id: str
    body: str
    argsrepr: str


class _Envelope(NamedTuple):
    """What all messages of one task, queue and label share: as headers, and as the text kombu puts on Redis."""

    headers: dict[str, Any]
    form: str


class Publisher:
    """The ``Dispatcher`` of workers and clients. No call raises but :meth:`ping`; all may come from any thread.

    ``failures`` counts messages whose delivery failed or is unknown.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.failures = 0
        self.refused: signatures.Refused = signatures.say_refused
        """Told of hand-outs of an application's tasks that can never be sent, with the end of the attempt."""
        self._app = app
        self._queue = settings.queue
        self._sender = Sender(_REDIS_OPTIONS)
        self._lock = threading.Lock()  # of the fields; held for no I/O
        self._connecting = threading.Lock()
        self._away_at: float | None = None
        self._connection: Any = None
        self._client: redis.Redis | None = None
        self._elsewhere = False
        self._logged_at = float("-inf")
        # Labels and queues are bounded by what is registered; the limit only guards against a mistake there.
        self._envelope: Callable[[str, str, str | None], _Envelope] = lru_cache(4096)(self._new_envelope)

    def steps(self, handouts: Sequence[HandOut]) -> None:
        """Offer these attempts to the workers of their queues."""
        queues: dict[str, list[_Letter]] = {}
        tasks: list[HandOut] = []
        for handout, message_id in zip(handouts, ids(len(handouts)), strict=True):
            if handout.signature is not None:
                tasks.append(handout)
                continue
            queues.setdefault(handout.queue, []).append(
                _Letter(
                    self._envelope(STEP_TASK, handout.queue, handout.label),
                    message_id,
                    f'[["{handout.instance}", {quoted(handout.key)}, {handout.fence}], {{}}, {_EMBED}]',
                    f"('{handout.instance}', {handout.key!r}, {handout.fence})",
                )
            )
        self._send(queues)
        for handout in tasks:
            try:
                self._sender.send(handout, self.refused)
            except Exception as error:
                self._count(error, 1)  # perhaps of another broker: this one is not given up

    def coordinate(self, instances: Iterable[UUID]) -> None:
        """Ask the workers of the coordinator queue to run a turn of each instance, up to 50 in one message."""
        envelope = self._envelope(COORDINATE_TASK, self._queue, None)
        letters = []
        todo = map(str, instances)
        while batch := list(islice(todo, COORDINATE_BATCH)):
            (message_id,) = ids(1)
            more = f", … {len(batch)} in all" if len(batch) > _SHOWN_IDS else ""
            letters.append(
                _Letter(
                    envelope,
                    message_id,
                    f"[[{json.dumps(batch)}], {{}}, {_EMBED}]",
                    f"([{', '.join(map(repr, batch[:_SHOWN_IDS]))}{more}],)",
                )
            )
        self._send({self._queue: letters})

    def backlog(self, queue: str) -> int | None:
        """Messages that wait in ``queue``; ``None`` where the broker cannot say, or cannot be reached."""
        try:
            client = self._redis()
            return None if client is None else int(client.llen(queue))
        except Exception as error:
            self._failed(error, 0)
            return None

    def ping(self) -> None:
        """Raise ``ServiceUnavailable`` unless the broker answers."""
        try:
            client = self._redis(insist=True)
            if client is not None:
                client.ping()
            else:
                with self._app.connection_for_write() as connection:
                    _ensure(connection)
        except Exception as error:
            self._forget(error)
            raise ServiceUnavailable(f"the broker does not answer: {error}", "broker") from error
        self._away_at = None

    def close(self) -> None:
        """Give the connections back. The next call opens new ones."""
        self._sender.close()
        self._disconnect()

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            connection.release()

    def _send(self, queues: dict[str, list[_Letter]]) -> None:
        if not any(queues.values()):
            return
        try:
            client = self._redis()
            if client is None:
                self._produce(queues)
            else:
                _push(client, queues)
            self._away_at = None
        except Exception as error:  # whatever it is, the caller's turn is recorded and an alarm will find it
            self._failed(error, sum(map(len, queues.values())))

    def _produce(self, queues: dict[str, list[_Letter]]) -> None:
        """Through kombu: the default exchange carries a message to the queue that its routing key names."""
        with self._app.producer_or_acquire() as producer, producer.batch():
            for queue, letters in queues.items():
                declare = [self._app.amqp.queues[queue]]
                for letter in letters:
                    own = {"id": letter.id, "root_id": letter.id, "argsrepr": letter.argsrepr}
                    producer.publish(
                        letter.body,
                        exchange="",
                        routing_key=queue,
                        declare=declare,
                        content_type="application/json",
                        content_encoding="utf-8",
                        headers={**letter.envelope.headers, **own},
                        correlation_id=letter.id,
                        delivery_mode=2,
                        retry=True,  # once, for a connection that went stale in the pool
                        retry_policy={"max_retries": 1, "interval_start": 0},
                    )

    def _redis(self, *, insist: bool = False) -> redis.Redis | None:
        """The client of kombu's own channel, with its prefix, TLS or Sentinel; ``None`` on other transports.

        Raises ``_Paused`` while the broker is away, unless it is to ``insist``.
        """
        away_at = self._away_at
        if away_at is not None and not insist and monotonic() - away_at < _PAUSE_S:
            raise _Paused
        client = self._client
        if client is not None or self._elsewhere:
            return client
        with self._turn_to_connect(away_at, insist):
            if self._client is None and not self._elsewhere:
                self._connect()
            return self._client

    @contextmanager
    def _turn_to_connect(self, away_at: float | None, insist: bool) -> Iterator[None]:
        """One thread connects. While all was well the others wait a moment; after a failure they do not."""
        patience = 2 * _CONNECT_S if insist else _QUEUE_S if away_at is None else 0.0
        if not self._connecting.acquire(timeout=patience):
            raise _Paused
        try:
            if self._away_at not in (None, away_at) and not insist:
                raise _Paused  # another thread has just failed
            yield
        finally:
            self._connecting.release()

    def _connect(self) -> None:
        options = {**_REDIS_OPTIONS, **self._app.conf.broker_transport_options, "retry_on_timeout": False}
        connection = self._app.connection_for_write(transport_options=options)
        if connection.transport.driver_type != "redis":
            self._elsewhere = True
            connection.release()
            return
        try:
            _ensure(connection)
            # Without `retry` in the pool's parameters, redis-py tries once. Its pool makes it safe for threads.
            with connection.channel().conn_or_acquire() as client, self._lock:
                self._connection, self._client = connection, client
        except BaseException:
            self._away_at = monotonic()
            connection.release()
            raise

    def _failed(self, error: Exception, count: int) -> None:
        self._count(error, count)
        self._forget(error)

    def _count(self, error: Exception, count: int) -> None:
        with self._lock:
            self.failures += count
            now = monotonic()
            quiet = isinstance(error, _Paused | Silent) or now - self._logged_at < _QUIET_S
            if not quiet:
                self._logged_at = now
        if not quiet:
            logger.warning(
                "publishing failed, alarms will make up for it (%d messages so far): %r", self.failures, error
            )

    def _forget(self, error: Exception) -> None:
        """Let the next call connect anew, perhaps to another of several brokers: at once after a cut, later if the
        broker was silent or could not be reached."""
        if isinstance(error, (redis.TimeoutError, OperationalError, OSError)):
            self._away_at = monotonic()
        if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
            self._disconnect()

    def _new_envelope(self, task: str, queue: str, label: str | None) -> _Envelope:
        message = self._app.amqp.as_task_v2(
            _ID, task, shadow=label, ignore_result=True, argsrepr=_ARGS, kwargsrepr="{}"
        )
        properties = {
            **message.properties,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "delivery_tag": _ID,
        }
        text = json.dumps(
            {
                "body": _BODY,
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "headers": message.headers,
                "properties": properties,
            }
        ).replace("%", "%%")
        for mark, hole in ((_ID, "%(id)s"), (_BODY, "%(body)s"), (_ARGS, "%(args)s")):
            text = text.replace(quoted(mark), f'"{hole}"')
        return _Envelope(message.headers, text)


def _ensure(connection: Any) -> None:
    """Connect, trying each of several URLs once, without a pause in between."""
    once = max(0, len(connection.alt or ()) - 1)
    connection.ensure_connection(max_retries=once, interval_start=0, interval_step=0, timeout=_CONNECT_S)


def _push(client: redis.Redis, queues: dict[str, list[_Letter]]) -> None:
    """One LPUSH per queue in one round trip; the end of the list that kombu does not read from gets the last."""
    with client.pipeline(transaction=False) as pipe:
        for queue, letters in queues.items():
            for start in range(0, len(letters), _LPUSH_BATCH):
                pipe.lpush(queue, *map(_text, letters[start : start + _LPUSH_BATCH]))
        pipe.execute()


def _text(letter: _Letter) -> str:
    return (
        letter.envelope.form
        % {
            "id": letter.id,
            "body": quoted(letter.body)[1:-1],  # without `body_encoding`, kombu takes the text as it is
            "args": quoted(letter.argsrepr)[1:-1],
        }
    )


def ids(count: int) -> Iterator[str]:
    """Random uuids of version 4, a fifth of the price: the dice are thrown once for all."""
    dice = os.urandom(16 * count).hex()
    for at in range(0, 32 * count, 32):
        a, b, c, d = (
            dice[at : at + 8],
            dice[at + 8 : at + 12],
            dice[at + 13 : at + 16],
            dice[at + 17 : at + 20],
        )
        yield f"{a}-{b}-4{c}-a{d}-{dice[at + 20 : at + 32]}"
