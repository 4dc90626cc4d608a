"""Native tasks: what they are, and the short way from their message into the pool.

Owns: their base class, its consumer strategy (Celery's ``Task.Strategy``) and its request. Does not own: the pool, nor
any message that needs more than beginning now: one with an ETA, expiry, stamps, a rate limit, another serializer or
another pool takes Celery's own strategy.

Celery's strategy copies every header into a request dictionary, and the end of a task goes through sets that serve
retries and results. A native task has neither. What people see stays the same: logging, ``task_received``, task
events, ``inspect``, revocation with and without *terminate*, totals.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import ref

from celery import Task, signals
from celery.app import trace
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from celery.worker import state
from celery.worker.request import Request
from celery.worker.strategy import default

from orchestrator.dispatch.pool import TaskPool
from orchestrator.ports import monotonic

logger = get_logger(__name__)

JSON = "application/json"
_SPECIAL = ("eta", "expires", "stamped_headers", "compression")

Strategy = Callable[[Any, Any, Any, Any, Any], Any]


class NativeTask(Task):  # type: ignore[misc, unused-ignore]
    """Base of tasks whose ``run`` is a coroutine function, awaited by ``TaskPool`` on its loop.

    Acknowledged when it begins: a message is a hint, and one that stays unacknowledged while a long body runs comes
    back as a duplicate (Redis, after its visibility timeout) or costs the channel (RabbitMQ, after its consumer
    timeout). So the prefetch window does not count running tasks; ``worker_disable_prefetch = True`` does, and
    fetches no more than there are free slots. On any other pool the coroutine runs to its end in a loop of its own.
    """

    abstract = True
    native = True
    Strategy = "orchestrator.dispatch.native:strategy"
    acks_late = False
    ignore_result = True

    def own_pool(self) -> TaskPool | None:
        """Where the task runs in a worker whose pool is another; ``None``: nowhere but in that one."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run(self.run(*args, **kwargs))


class NativeRequest(Request):  # type: ignore[misc, unused-ignore]
    """A Celery request that is filled in only when somebody asks."""

    acknowledged: bool
    _eta = None
    _expires = None
    _ignore_result = True
    _decoded = True
    _content_type = None
    _content_encoding = None
    _utc = True
    _pool: TaskPool | None = None

    def __init__(self, message: Any, payload: Any, task: Any, consumer: Any, ack: Any, reject: Any) -> None:
        headers = message.headers
        self._message = message
        self._decoded_payload = payload
        self.id = headers["id"]
        self._type = headers["task"]
        self.name = headers.get("shadow") or self._type
        self._task = task
        self._app = consumer.app
        self._hostname = consumer.hostname
        self._eventer = consumer.event_dispatcher
        self._connection_errors = consumer.connection_errors
        self._on_ack = ack
        self._on_reject = reject
        self._consumer = consumer
        self._args, self._kwargs, _ = payload

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Celery gives the worker's pool, which may be another than the one that this task is in."""
        super().terminate(self._pool or pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Called for all requests at a cold shutdown: with an engine, what runs is put back, and nothing fails."""
        own: Any = self._pool or pool
        if getattr(own, "cut", None) is None or own.loop is None:
            super().cancel(own, signal, emit_retry)
        else:
            own.loop.call_soon_threadsafe(own.cut)

    @property
    def _payload(self) -> Any:
        return self._decoded_payload

    @property
    def _body(self) -> Any:
        return self._decoded_payload

    @property
    def _argsrepr(self) -> str:
        return self._message.headers.get("argsrepr", "")

    @property
    def _kwargsrepr(self) -> str:
        return self._message.headers.get("kwargsrepr", "")

    @property
    def _root_id(self) -> str | None:
        return self._message.headers.get("root_id")

    @property
    def _parent_id(self) -> str | None:
        return self._message.headers.get("parent_id")

    @property
    def _delivery_info(self) -> dict[str, Any]:
        info = self._message.delivery_info or {}
        return {
            "exchange": info.get("exchange"),
            "routing_key": info.get("routing_key"),
            "priority": self._message.properties.get("priority"),
            "redelivered": info.get("redelivered", False),
        }

    @cached_property
    def _request_dict(self) -> dict[str, Any]:
        properties = self._message.properties
        return {
            **self._message.headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._hostname,
            "delivery_info": self._delivery_info,
            "args": self._args,
            "kwargs": self._kwargs,
        }

    def acknowledge(self) -> None:
        """Let go of the message. Called in Celery's thread, which need not be asked to do it soon."""
        if self.acknowledged:
            return
        if self._consumer._maximum_prefetch_restored:
            self._message.ack_log_error(logger, self._connection_errors)
        else:  # acknowledgements count while Celery widens the prefetch window after a reconnect
            self._on_ack(logger, self._connection_errors)
        self.acknowledged = True

    @property
    def stamped_headers(self) -> list[str]:
        """None: a message with stamps takes Celery's strategy."""
        return []

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The task has begun, in the pool, at this monotonic instant."""
        self.worker_pid = pid
        self.time_start = time.time() - (monotonic() - time_accepted)  # noqa: TID251 (shown to people)
        state.requests[self.id] = self
        state.active_requests.add(self)
        state.total_count[self.name] += 1
        state.all_total_count[0] += 1
        self.acknowledge()
        if wanted(self._eventer):
            self.send_event("task-started")
        if self._terminate_on_ack is not None:
            self.terminate(*self._terminate_on_ack)

    def on_success(self, failed__retval__runtime: tuple[bool, Any, float], **kwargs: Any) -> None:
        """The task has ended: with a value, or with what Celery makes of a failure."""
        failed, value, runtime = failed__retval__runtime
        if failed:
            super().on_success(failed__retval__runtime, **kwargs)
            return
        state.requests.pop(self.id, None)
        state.active_requests.discard(self)
        state.reserved_requests.discard(self)
        if wanted(self._eventer):
            text = "None" if value is None else saferepr(value, self._task.resultrepr_maxsize)
            self.send_event("task-succeeded", result=text, runtime=runtime)

    def execute_using_pool(self, pool: TaskPool, **_: Any) -> Any:
        """Start the task in the pool."""
        self._pool = pool
        job = pool.enter(self._task, self.id, self._args, self._kwargs, self.on_accepted, self.on_success)
        self._apply_result = ref(job)
        return job


def wanted(eventer: Any) -> bool:
    """Whether task events are sent at all: with ``-E``, or since somebody listens."""
    return bool(eventer and eventer.enabled and (not eventer.groups or "task" in eventer.groups))


def strategy(task: Any, app: Any, consumer: Any) -> Strategy:
    """Celery's ``Task.Strategy`` of native tasks; made anew for each connection."""
    stock: Strategy = default(task, app, consumer)
    pool = consumer.pool if isinstance(consumer.pool, TaskPool) else task.own_pool()
    if pool is None:
        return stock
    says = logger.isEnabledFor(logging.INFO)
    eventer = consumer.event_dispatcher
    revoked = state.revoked

    def received(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        payload = None if body is not None or consumer.task_buckets[task.name] else plain(message)
        if payload is None:
            return stock(message, body, ack, reject, callbacks)
        request = NativeRequest(message, payload, task, consumer, ack, reject)
        if says:
            _say(request)
        if request.id in revoked and request.revoked():
            return None
        signals.task_received.send(sender=consumer, request=request)
        if wanted(eventer):
            _announce(request)
        state.requests[request.id] = request
        state.reserved_requests.add(request)
        for callback in callbacks:
            callback(request)
        return request.execute_using_pool(pool)

    return received


def plain(message: Any) -> Any:
    """Arguments, keyword arguments and the rest of a message that may begin now, or ``None``: then Celery looks at it,
    and says what is wrong if anything is."""
    headers = message.headers
    accept = message.accept
    if message.content_type != JSON or (accept is not None and JSON not in accept):
        return None
    if any(map(headers.get, _SPECIAL)):
        return None
    try:
        text = (
            message.body if isinstance(message.body, str) else bytes(message.body).decode()
        )  # AMQP decodes it
        if "__type__" in text:  # a type that kombu's JSON knows
            return None
        payload = json.loads(text)
        args, kwargs, embed = payload
    except (TypeError, ValueError):
        return None
    is_whole = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)
    return payload if is_whole and "id" in headers else None


def _say(request: NativeRequest) -> None:
    context = {
        "id": request.id, "name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr, "eta": None,
    }  # fmt: skip
    logger.info(trace.LOG_RECEIVED, context, extra={"data": context})


def _announce(request: NativeRequest) -> None:
    request.send_event(
        "task-received", name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr,
        root_id=request.root_id, parent_id=request.parent_id,
        retries=request.message.headers.get("retries", 0), eta=None, expires=None,
    )  # fmt: skip
