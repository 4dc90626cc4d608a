"""``WorkflowStep``: what workflow code holds, and checks at the call.

Owns: the arguments of each ``step.*`` method and their checks. Does not own: keys, futures and order
(``replay``), nor what a step does when it runs (``engine.attempts``).
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from math import isnan
from types import FrameType
from typing import Any, Protocol, overload
from uuid import UUID

from orchestrator.errors import InvalidConfig, NotDurable, StepLimitExceeded
from orchestrator.workflow import codec
from orchestrator.workflow.language import signatures
from orchestrator.workflow.language.binding import return_annotation
from orchestrator.workflow.language.commands import DO, INVOKE, PATCH, SLEEP, WAIT, StartStep, StepCall
from orchestrator.workflow.language.config import Retries, StepConfig, WaitConfig
from orchestrator.workflow.language.decorated import (
    DecoratedStep,
    Options,
    Place,
    StepDecorator,
    name_of,
)
from orchestrator.workflow.language.durations import MAX_SECONDS, Duration, seconds
from orchestrator.workflow.language.invocation import Invocation
from orchestrator.workflow.language.labels import label
from orchestrator.workflow.language.names import check_step_name
from orchestrator.workflow.loop import inside_workflow

Handler = Callable[..., Any]

_NOT_GIVEN: Any = object()


class Recorder(Protocol):
    """The part of a replay that step calls speak to."""

    now: float
    steps: int

    @property
    def dice(self) -> random.Random: ...
    def check_alive(self) -> None: ...
    def key_of(self, kind: str, name: str) -> tuple[str, int]: ...
    def start(self, command: StartStep) -> asyncio.Future[Any]: ...
    def mark(self, key: str, line: int) -> bool: ...


class WorkflowStep:
    """The durable calls of one instance. Every method starts its step at once and returns a future."""

    __slots__ = ("_decorated", "_limit", "_replay")

    def __init__(self, replay: Recorder, limit: int) -> None:
        self._replay = replay
        self._limit = limit
        self._decorated: dict[str, DecoratedStep] | None = None

    @overload
    def do(
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        retries: Retries | None = ...,
        timeout: Duration | None = ...,
        sensitive: bool = ...,
        queue: str | None = ...,
        rollback: Handler | None = ...,
        rollback_retries: Retries | None = ...,
        rollback_timeout: Duration | None = ...,
    ) -> asyncio.Future[Any]: ...

    @overload
    def do(
        self,
        name: str | None = ...,
        *,
        concurrent: bool = ...,
        retries: Retries | None = ...,
        timeout: Duration | None = ...,
        sensitive: bool = ...,
        queue: str | None = ...,
        rollback: Handler | None = ...,
        rollback_retries: Retries | None = ...,
        rollback_timeout: Duration | None = ...,
    ) -> StepDecorator: ...

    @overload
    def do(self, name: Callable[..., Any]) -> DecoratedStep: ...

    def do(
        self,
        name: Any = None,
        fn: Any = _NOT_GIVEN,
        *args: Any,
        concurrent: bool = False,
        retries: Retries | None = None,
        timeout: Duration | None = None,
        sensitive: bool = False,
        queue: str | None = None,
        rollback: Handler | None = None,
        rollback_retries: Retries | None = None,
        rollback_timeout: Duration | None = None,
    ) -> Any:
        """Run ``fn(*args)`` in a Celery task of its own; awaiting gives its recorded result.

        The step starts now, not when it is awaited. ``args`` fill the parameters other than ``ctx``, which
        receives the ``StepContext``. ``timeout`` is per attempt (default 10 minutes), ``retries`` default to
        five, 10 seconds, exponential. ``rollback`` is called with a ``RollbackContext`` if the workflow fails
        for good. A lambda that reads the variable of a loop sees its last value, as everywhere in Python: pass
        ``args``, and use ``r.args`` in handlers. ``fn`` may be a Celery signature, with its arguments in it: that task
        then runs on its own queue, in its own worker. Raises ``InvalidName``, ``InvalidConfig`` and
        ``StepLimitExceeded`` at the call; everything the body raises comes out of the await.

        Without ``fn`` it is a decorator: ``@step.do("load")``, ``@step.do()`` and ``@step.do`` make a function a
        step that is started by calling it (see ``DecoratedStep``). ``concurrent``: what it needs is run together.
        """
        options = (retries, timeout, sensitive, queue, rollback, rollback_retries, rollback_timeout)
        frame = sys._getframe(1)
        if fn is _NOT_GIVEN:
            return self._decorator(name, concurrent, frame, options)
        if concurrent:
            raise InvalidConfig(
                f"step.do({name!r}) has concurrent=, which is for decorated steps (without fn)."
            )
        return self._begin(name, fn, args, frame, options)

    def sleep(self, name: str, duration: Duration) -> asyncio.Future[Any]:
        """Wait for ``duration`` without holding a worker. At most 365 days."""
        self._check_caller(name)
        check_step_name(name)
        delay = seconds(duration, what=f"duration of step.sleep({name!r})")
        if delay > MAX_SECONDS:
            raise InvalidConfig(f"step.sleep({name!r}) may last 365 days at most.")
        return self._replay.start(StartStep(self._call(SLEEP, name, sys._getframe(1)), sleep_s=delay))

    def sleep_until(self, name: str, when: datetime | float) -> asyncio.Future[Any]:
        """Wait until ``when``: an aware ``datetime`` or epoch seconds, at most 365 days ahead.

        A moment that is past when the step first starts makes the await raise ``InvalidConfig``.
        """
        self._check_caller(name)
        check_step_name(name)
        until = _instant(name, when)
        return self._replay.start(StartStep(self._call(SLEEP, name, sys._getframe(1)), until=until))

    def wait_for_event(
        self,
        name: str,
        *,
        type: str,
        timeout: Duration = "24 hours",
        sensitive: bool = False,
        rollback: Handler | None = None,
        rollback_retries: Retries | None = None,
        rollback_timeout: Duration | None = None,
    ) -> asyncio.Future[Any]:
        """Wait for the next event of ``type``; awaiting gives a ``ReceivedEvent``.

        Waiters of a type are served first come, first served, also from events sent earlier. Nothing within
        ``timeout`` (1 second to 365 days) makes the await raise ``EventTimeout``.
        """
        _check_rollback(name, rollback, rollback_retries, rollback_timeout)
        self._check_caller(name)
        check_step_name(name)
        wait = WaitConfig.build(type, timeout, sensitive)
        call = self._call(WAIT, name, sys._getframe(1))
        self._with_rollback(call, rollback, rollback_retries, rollback_timeout)
        return self._replay.start(StartStep(call, wait=wait))

    def invoke(
        self,
        name: str,
        workflow: Any,
        params: Any = None,
        *,
        id: str | None = None,
        timeout: Duration | None = None,
    ) -> asyncio.Future[Any]:
        """Start an instance of ``workflow`` as a child and wait for its output, typed by its return annotation.

        ``id`` defaults to a UUID that is the same on every replay. The child is an ordinary instance; it ends when
        this one does, when the await is cancelled, or after ``timeout`` (default: none), which raises ``StepTimeout``.
        Raises ``InvalidName``, ``InvalidConfig`` and ``InvalidInstanceId`` at the call. Out of the await come what the
        child failed with, ``WorkflowTerminated``, ``InstanceExists``, ``InstanceNotFound`` if it was deleted, and
        ``InvalidParams``, ``SerializationError`` or ``PayloadTooLarge`` for its parameters.
        """
        self._check_caller(name)
        check_step_name(name)
        wanted = Invocation.build(name, workflow, params, id, timeout)
        call = self._call(INVOKE, name, sys._getframe(1))
        call.annotation = wanted.definition.return_type
        return self._replay.start(StartStep(call, invoke=wanted))

    def now(self) -> datetime:
        """The recorded time of what the workflow was last told, UTC: the same on every replay."""
        self._check_caller("now")
        return datetime.fromtimestamp(self._replay.now, UTC)

    def uuid(self) -> UUID:
        """A version 4 UUID, the same on every replay."""
        self._check_caller("uuid")
        return UUID(int=self._replay.dice.getrandbits(128), version=4)

    def random(self) -> float:
        """A number in [0, 1), the same on every replay."""
        self._check_caller("random")
        return self._replay.dice.random()

    def patched(self, name: str) -> bool:
        """Whether this instance goes the new way: a mark for changing code under running instances.

        True where the instance is past all it has recorded, and from then on for this instance, wherever it is
        replayed; false where it recorded another way before there was this call. Called several times, each call
        counts for itself, as the occurrences of a step name do.
        """
        self._check_caller(name)
        check_step_name(name)
        key, _ = self._replay.key_of(PATCH, name)
        return self._replay.mark(key, sys._getframe(1).f_lineno)

    # -- inside -------------------------------------------------------------------------------------------

    def _begin(
        self, name: str, fn: Any, args: tuple[Any, ...], place: FrameType | Place, options: Options
    ) -> asyncio.Future[Any]:
        """Start a ``do`` step."""
        retries, timeout, sensitive, queue, rollback, rollback_retries, rollback_timeout = options
        if not callable(fn):
            raise InvalidConfig(f"step.do({name!r}) needs a function to run, not {type(fn).__name__}.")
        task = None
        if isinstance(fn, dict) and signatures.is_signature(fn):
            fn = signatures.kept(name, fn, args)
            task, args, queue = fn["task"], fn["args"], queue or signatures.queue_of(fn)
        _check_rollback(name, rollback, rollback_retries, rollback_timeout)
        self._check_caller(name)
        check_step_name(name)
        config = StepConfig.build(retries, timeout, sensitive, queue)
        if task is not None:
            config = replace(config, task=task)
        if self._replay.steps >= self._limit:
            raise StepLimitExceeded(
                f"step {name!r} is number {self._limit + 1:,}; this workflow may start {self._limit:,} steps "
                "(max_steps=, up to 25,000)."
            )
        call = self._call(DO, name, place)
        self._replay.steps += 1
        call.fn, call.args, call.config = fn, codec.copied(args), config
        call.annotation = return_annotation(fn)
        call.delay = _delay_function(retries)
        self._with_rollback(call, rollback, rollback_retries, rollback_timeout)
        return self._replay.start(StartStep(call))

    def _decorator(
        self, name: Any, concurrent: bool, frame: FrameType, options: Options
    ) -> StepDecorator | DecoratedStep:
        """What ``step.do`` without a function gives: a decorator, or a step if it was one itself."""
        file, line = frame.f_code.co_filename, frame.f_lineno

        def decorate(fn: Callable[..., Any], given: str | None = name) -> DecoratedStep:
            chosen = name_of(given, fn)
            self._check_caller(chosen)
            check_step_name(chosen)
            _check_rollback(chosen, *options[4:])
            StepConfig.build(*options[:4])
            bounded = chosen if given is None else label(file, line, chosen)
            known = self._decorated = {} if self._decorated is None else self._decorated
            step = known[chosen] = DecoratedStep(self, chosen, fn, bounded, concurrent, options, known)
            return step

        return decorate(name, None) if callable(name) else StepDecorator(name, decorate)

    def _check_caller(self, name: str) -> None:
        if not inside_workflow():  # asked first: in a body it stays a named error when the replay is over
            raise NotDurable(
                f"step {name!r} was called from inside a step body, a rollback handler or another thread; steps "
                "are started by the workflow's own code only. Return a value from the body and start the next step "
                "after it."
            )
        self._replay.check_alive()

    def _call(self, kind: str, name: str, place: FrameType | Place) -> StepCall:
        key, count = self._replay.key_of(kind, name)
        if isinstance(place, Place):
            return StepCall(key, kind, name, count, place.label, place.line)
        line = place.f_lineno
        return StepCall(key, kind, name, count, label(place.f_code.co_filename, line, name), line)

    def _with_rollback(
        self, call: StepCall, handler: Handler | None, retries: Retries | None, timeout: Duration | None
    ) -> None:
        if handler is not None:
            # A task's queue is served by the application's workers, which do not run handlers.
            queue = call.config.queue if call.config and call.config.task is None else None
            call.rollback = handler
            call.rollback_config = StepConfig.build(retries, timeout, False, queue)
            call.rollback_delay = _delay_function(retries)


def _delay_function(retries: Retries | None) -> Callable[..., Any] | None:
    delay = retries.delay if retries is not None else None
    return delay if callable(delay) else None


def _check_rollback(name: str, handler: Any, retries: Any, timeout: Any) -> None:
    if handler is None and (retries is not None or timeout is not None):
        raise InvalidConfig(f"step {name!r} has rollback_retries or rollback_timeout but no rollback=.")
    if isinstance(handler, dict) and signatures.is_signature(handler):
        raise InvalidConfig(
            f"rollback= of step {name!r} is a Celery signature; it must be a function, which is told what to undo. It "
            "may send one and wait for it."
        )
    if handler is not None and not callable(handler):
        raise InvalidConfig(f"rollback= of step {name!r} must be a function, not {type(handler).__name__}.")


def _instant(name: str, when: Any) -> float:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise InvalidConfig(
                f"step.sleep_until({name!r}) needs a datetime with a time zone; this one has none (it would mean "
                "another moment on every machine)."
            )
        return when.timestamp()
    if isinstance(when, bool) or not isinstance(when, (int, float)) or isnan(when):
        raise InvalidConfig(
            f"step.sleep_until({name!r}) takes an aware datetime or epoch seconds, not {when!r}."
        )
    return float(when)
