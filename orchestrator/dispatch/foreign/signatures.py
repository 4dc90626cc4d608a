"""Sends an application's own tasks, in place of our step messages, and knows their messages again.

Owns: the header that names the attempt, the id of the task, its options, and what a signature that cannot be sent makes
of the attempt. Does not own: when to send (``courier``), nor the worker's side (``guard``, ``reports``).
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid5

from kombu.exceptions import EncodeError, OperationalError

from orchestrator.errors import SerializationError
from orchestrator.ports import HandOut, dice
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Outcome

logger = logging.getLogger(__name__)

HEADER = "orchestrator_attempt"
"""The header of a task that is a step: instance, key, fence. Celery sends it along with its own retries."""

_sending = threading.local()
"""``_sending.step`` while this thread sends a step."""
_STOCK = "_orchestrator_on_task_call"

Refused = Callable[[HandOut, Outcome], None]


def send(handout: HandOut, refused: Refused, connection: Any = None) -> None:
    """Send the task of this hand-out to where it goes, through ``connection`` or one of its app. Raises what the
    broker's absence raises; a signature that nobody could send is told to ``refused``."""
    signature = handout.signature.clone()
    options = {
        # Once more, for a connection that went stale in the pool; whatever is lost is sent again by an alarm.
        "retry": True,
        "retry_policy": {"max_retries": 1, "interval_start": 0},
        **({} if connection is None else {"connection": connection}),
        **signature.options,
        "task_id": task_id(handout.instance, handout.key, handout.fence),
        "headers": {
            **(signature.options.get("headers") or {}),
            HEADER: [str(handout.instance), handout.key, handout.fence],
        },
    }
    if handout.queue:
        # Where it is set, an exchange or a routing key of the user's own would win over the queue.
        options["queue"] = handout.queue
        for name in ("exchange", "routing_key"):
            options.pop(name, None)
    signature["options"] = options
    try:
        _publish(signature)
    except (OperationalError, OSError):
        raise
    except EncodeError as error:
        text = (
            f"the arguments of the Celery task {signature['task']!r} are not fit for its serializer: {error}"
        )
        refused(handout, _ended(handout, SerializationError(text), final=True))
    except Exception as error:
        refused(handout, _ended(handout, error, final=False))


def _publish(signature: Any) -> None:
    """Send it as its task does; ``task_always_eager`` does not count: the body belongs into a worker of its queue, not
    into the thread that everything else waits for."""
    task = _task_of(signature)
    app = app_of(signature)
    _hear_no_results(app)
    _sending.step = True
    try:
        if task is None or not app.conf.task_always_eager:
            signature.apply_async()
            return
        preset = {key: value for key, value in task._get_exec_options().items() if value is not None}
        options = {"ignore_result": task.ignore_result, **preset, **signature.options}
        app.send_task(task.name, signature.args, signature.kwargs, task_type=task, **options)
    finally:
        _sending.step = False


def _task_of(signature: Any) -> Any:
    try:
        return signature.type
    except KeyError:  # not known here: sent by its name
        return None


def app_of(signature: Any) -> Any:
    """The app that sends it."""
    task = _task_of(signature)
    return signature.app if task is None else task.app


def _hear_no_results(app: Any) -> None:
    """Nobody here waits for the result of a step's task. Celery would subscribe to it all the same: a round trip for
    each task, answers that nobody reads, and 20 seconds of waiting followed by an error while the result backend is
    away, which the task does not need in order to be sent."""
    backend = app.backend
    if hasattr(backend, _STOCK):
        return
    stock = backend.on_task_call

    def on_task_call(producer: Any, task_id: str) -> Any:
        return None if getattr(_sending, "step", False) else stock(producer, task_id)

    setattr(backend, _STOCK, stock)
    backend.on_task_call = on_task_call


def task_id(instance: UUID, key: str, fence: int) -> str:
    """The id of an attempt's task, the same however often it is sent. A UUID: result backends limit its length."""
    return str(uuid5(instance, f"{key}:{fence}"))


def attempt_of(headers: Mapping[str, Any] | None) -> Claim | None:
    """The attempt that a message's headers name, or ``None`` for a task that is no step. They are believed no further:
    the fence is checked in Postgres."""
    named: Any = headers.get(HEADER) if headers else None
    try:
        instance, key, fence = named
        return Claim(UUID(instance), str(key), int(fence))
    except (TypeError, ValueError, AttributeError):
        return None


def destination(signature: Any) -> str:
    """The queue that Celery sends this signature to."""
    options = dict(signature.options)
    task = signature.app.tasks.get(signature["task"])
    if task is not None:
        options = {"queue": getattr(task, "queue", None), **options}
    named = options.get("queue")
    if named:
        return str(getattr(named, "name", named))
    route = signature.app.amqp.router.route(options, signature["task"], signature.args, signature.kwargs)
    queue = route.get("queue")
    return str(getattr(queue, "name", queue or route.get("routing_key") or ""))


def say_refused(handout: HandOut, outcome: Outcome) -> None:
    """Where nobody else is told."""
    logger.error(
        "The task of step %s of instance %s could not be sent: %s",
        handout.key,
        handout.instance,
        outcome.error,
    )


def _ended(handout: HandOut, error: Exception, *, final: bool) -> Outcome:
    return Outcome(
        handout.key,
        handout.fence,
        error=codec.encode_error(error),
        traceback="".join(traceback.format_exception(error)),
        final=final,
        dice=dice(),
    )
