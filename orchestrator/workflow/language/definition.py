"""Workflows as users write them.

Owns: the events a workflow receives, the options of a definition and their check, what the function's annotations
and module say about its values and errors, and the registry by name and version. Does not own running one
(``replay``), nor the object applications hold (``client``).
"""

import hashlib
import inspect
import sys
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from math import isfinite
from types import CodeType, FrameType
from typing import Any, Generic, TypeVar, cast

from orchestrator.errors import (
    InvalidConfig,
    InvalidParams,
    PayloadTooLarge,
    SerializationError,
    UnknownWorkflow,
)
from orchestrator.workflow.codec import MIB, decode, encode, kind_of
from orchestrator.workflow.language.config import RollbackPolicy
from orchestrator.workflow.language.durations import Duration, optional
from orchestrator.workflow.language.names import check_workflow_name
from orchestrator.workflow.language.schedule import Schedule, checked_schedules

T = TypeVar("T")

MAX_STEPS = 25_000
"""The highest ``max_steps`` a workflow may ask for."""

DEFAULT_MAX_STEPS = 10_000
_PACKAGE = __name__.split(".", maxsplit=1)[0]


@dataclass(frozen=True)
class ScheduledRun:
    """Which schedule created an instance, and for which moment."""

    cron: str
    scheduled_time: datetime


@dataclass(frozen=True)
class WorkflowEvent(Generic[T]):
    """What a workflow is started with. ``payload`` is validated into the annotation of ``WorkflowEvent[...]``."""

    payload: T
    timestamp: datetime
    """When the instance was created; aware."""
    instance_id: str
    workflow_name: str
    schedule: ScheduledRun | None = None


@dataclass(frozen=True)
class ReceivedEvent:
    """What ``step.wait_for_event`` gives: an event that was sent to the instance."""

    payload: Any
    timestamp: datetime
    """When it was received; aware."""
    type: str


@dataclass(frozen=True)
class Options:
    """The options of a definition, checked. ``None`` stands for the default of the deployment."""

    name: str
    version: str = "1"
    concurrency: int | None = None
    """Running instances at once."""
    creation_rate: float | None = None
    """Instances created per second."""
    max_steps: int = DEFAULT_MAX_STEPS
    success_retention_s: float | None = None
    error_retention_s: float | None = None
    schedules: tuple[Schedule, ...] = ()
    rollback: RollbackPolicy = field(default_factory=RollbackPolicy)
    errors: tuple[type[Exception], ...] = ()


@dataclass(frozen=True, eq=False)
class Definition:
    """One version of one workflow: a function ``async (event, step)``, or a class with such a ``run``."""

    name: str
    version: str
    options: Options
    fn: Any
    source_hash: str
    """Changes when the source of the function or class does."""
    source_file: str
    names: Mapping[str, Any] = field(repr=False, default_factory=dict)
    """Classes that were local where it was defined: for annotations written as text, and for errors."""
    is_class: bool = False

    @property
    def function(self) -> Callable[..., Any]:
        """The function that is run: ``fn`` itself, or the ``run`` of the class."""
        return cast(Callable[..., Any], self.fn.run if self.is_class else self.fn)

    def start(self, event: WorkflowEvent[Any], step: Any) -> Coroutine[Any, Any, Any]:
        """The coroutine of one replay; a class is instantiated for it, without arguments."""
        run = self.fn().run if self.is_class else self.fn
        return cast(Coroutine[Any, Any, Any], run(event, step))

    @cached_property
    def payload_type(self) -> Any:
        """What the event's payload is validated into: the X of ``WorkflowEvent[X]``, else ``Any``."""
        return _payload_type(self)

    @cached_property
    def return_type(self) -> Any:
        """What the output is validated into: the return annotation, else ``Any``."""
        return _annotation(self.function, "return", self.names)

    @cached_property
    def error_classes(self) -> Mapping[str, type[Exception]]:
        """The exception classes that are revived by class, by :func:`~orchestrator.workflow.codec.kind_of`.

        Those of ``errors=``, and those bound to a name in the module, or around the function.
        """
        plain = _plain(self.function)
        sight = [plain.__globals__, self.names, _closure(plain)]
        bound = [*self.options.errors, *(each for names in sight for each in list(names.values()))]
        return {kind_of(each): each for each in bound if _is_exception(each)}


def define(
    target: Callable[..., Any],
    *,
    name: str | None = None,
    version: str = "1",
    concurrency: int | None = None,
    creation_rate: float | None = None,
    max_steps: int = DEFAULT_MAX_STEPS,
    success_retention: Duration | None = None,
    error_retention: Duration | None = None,
    schedules: str | Schedule | Iterable[str | Schedule] = (),
    rollback: RollbackPolicy | None = None,
    errors: Iterable[type[Exception]] = (),
) -> Definition:
    """Check a workflow and its options; nothing is registered.

    Raises ``InvalidConfig`` if the target is neither an ``async def (event, step)`` nor a class with such a
    ``run``, or an option makes no sense; ``InvalidName`` for its name.
    """
    function = _checked_target(target)
    chosen = check_workflow_name(getattr(target, "__name__", "") if name is None else name)
    options = Options(
        name=chosen,
        version=_checked_version(version),
        concurrency=_checked_count(concurrency, "concurrency"),
        creation_rate=_checked_rate(creation_rate),
        max_steps=_checked_count(max_steps, "max_steps", MAX_STEPS) or DEFAULT_MAX_STEPS,
        success_retention_s=optional(success_retention, what="success_retention"),
        error_retention_s=optional(error_retention, what="error_retention"),
        schedules=checked_schedules(schedules, chosen),
        rollback=_checked_rollback(rollback),
        errors=_checked_errors(errors),
    )
    definition = Definition(
        name=chosen,
        version=options.version,
        options=options,
        fn=target,
        source_hash=_source_hash(target, function),
        source_file=_plain(function).__code__.co_filename,
        names=_names_in_sight(),
        is_class=inspect.isclass(target),
    )
    for schedule in options.schedules:
        check_scheduled(definition, schedule, _payload_type(definition))
    return definition


def check_scheduled(definition: Definition, schedule: Schedule, payload_type: Any) -> str:
    """The parameters of a schedule as JSON text. Raises ``InvalidConfig`` if they do not fit what its workflow takes.

    When a workflow is defined, a class that its module has further down is not known yet and nothing is refused for
    it; so this is asked again when a worker starts.
    """
    try:
        text = encode(schedule.params, what="params")
        decode(text, payload_type)
    except (SerializationError, PayloadTooLarge) as error:
        raise InvalidConfig(
            f"workflow {definition.name!r} has the schedule {str(schedule)!r}, whose params do not fit: {error}"
        ) from error
    return text


def validate_params(definition: Definition, value: Any, *, limit: int = MIB) -> str:
    """The parameters as JSON text, if they validate into the payload type of the workflow.

    Raises ``InvalidParams`` with pydantic's complaints, ``SerializationError`` or ``PayloadTooLarge``.
    """
    text = encode(value, what="params", limit=limit)
    try:
        decode(text, definition.payload_type)
    except SerializationError as error:
        raise InvalidParams(f"params of workflow {definition.name!r}: {error}") from error
    return text


def load_params(definition: Definition, text: str) -> Any:
    """The payload that stored parameters hold, as the workflow wants it. Raises ``SerializationError``."""
    return decode(text, definition.payload_type)


class Registry:
    """The workflows this process knows, by name and version."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Definition] = {}

    def register(self, definition: Definition) -> Definition:
        """Make a definition known. The same function may be registered again, as when its module is reloaded.

        Raises ``InvalidConfig`` if another function holds that name and version.
        """
        key = (definition.name, definition.version)
        held = self._known.get(key)
        if held is not None and _origin(held) != _origin(definition):
            text = f"workflow {definition.name!r} version {definition.version!r} is defined twice: by"
            both = f"{' in '.join(_origin(held))} and by {' in '.join(_origin(definition))}"
            raise InvalidConfig(f"{text} {both}; give one of them another name or version")
        self._known[key] = definition
        return definition

    def get(self, name: str, version: str) -> Definition:
        """The definition of that name and version. Raises ``UnknownWorkflow``, which lists what is known."""
        definition = self._known.get((name, version))
        if definition is None:
            text = f"workflow {name!r} version {version!r} is not registered here; {self._listed()}"
            raise UnknownWorkflow(text)
        return definition

    def latest(self, name: str) -> Definition:
        """The version of that name that was registered last. Raises ``UnknownWorkflow``."""
        for (each, _), definition in reversed(self._known.items()):
            if each == name:
                return definition
        raise UnknownWorkflow(f"workflow {name!r} is not registered here; {self._listed()}")

    def known(self) -> list[tuple[str, str]]:
        """Every registered name and version, sorted."""
        return sorted(self._known)

    def _listed(self) -> str:
        known = ", ".join(f"{name} (version {version})" for name, version in self.known())
        return f"known are: {known}" if known else "none is (does ORCHESTRATOR_WORKFLOWS name their modules?)"


registry = Registry()
"""The registry of this process, which ``@workflow`` fills."""


def _payload_type(definition: Definition) -> Any:
    parameter = list(inspect.signature(definition.function).parameters)[1 if definition.is_class else 0]
    annotation = _annotation(definition.function, parameter, definition.names)
    found = typing.get_args(annotation) if typing.get_origin(annotation) is WorkflowEvent else ()
    return found[0] if found and not isinstance(found[0], TypeVar) else Any


def _annotation(function: Callable[..., Any], name: str, names: Mapping[str, Any]) -> Any:
    """One annotation of a function as an object; ``Any`` if there is none, or it names what cannot be found."""
    plain = _plain(function)
    try:
        written = plain.__annotations__.get(name, Any)
    except NameError:  # Python 3.14 evaluates all of them here
        return Any

    def holder() -> None: ...

    # One at a time: a name that only type checkers see must not take the other annotations with it.
    holder.__annotations__ = {"it": written}
    local = {WorkflowEvent.__name__: WorkflowEvent, **plain.__globals__, **names, **_closure(plain)}
    try:
        return typing.get_type_hints(holder, {}, local, include_extras=True)["it"]
    except Exception:  # whatever evaluating the text may raise
        return Any


def _plain(function: Any) -> Any:
    """The function under decorators, partials and methods."""
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    return getattr(function, "__func__", function)


def _closure(function: Any) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name that is not bound yet
            found[name] = cell.cell_contents
    return found


def _names_in_sight() -> dict[str, Any]:
    """The local names of the function in which a workflow is being defined; none at the top of a module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == _PACKAGE:
        frame = frame.f_back
    if frame is None or frame.f_locals is frame.f_globals:
        return {}
    return {name: held for name, held in frame.f_locals.items() if isinstance(held, type)}


def _is_exception(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _source_hash(target: Any, function: Any) -> str:
    try:
        source = inspect.getsource(target if inspect.isclass(target) else _plain(function)).encode()
    except (OSError, TypeError):
        source = _bytecode(_plain(function).__code__)
    return hashlib.sha256(source).hexdigest()[:16]


def _bytecode(code: CodeType) -> bytes:
    held = [_bytecode(each) for each in code.co_consts if isinstance(each, CodeType)]
    plain = [each for each in code.co_consts if isinstance(each, str | int | float)]
    return b"\0".join([code.co_code, repr((code.co_names, plain)).encode(), *held])


def _origin(definition: Definition) -> tuple[str, str]:
    return _plain(definition.function).__qualname__, definition.source_file


def _checked_target(target: Any) -> Callable[..., Any]:
    function = getattr(target, "run", None) if inspect.isclass(target) else target
    shown = getattr(target, "__qualname__", repr(target))
    if not inspect.iscoroutinefunction(function):
        raise InvalidConfig(
            f"workflow {shown} must be an `async def` of (event, step), or a class with an `async def run` of"
            " (self, event, step)"
        )
    try:
        inspect.signature(function).bind(*(None,) * (3 if inspect.isclass(target) else 2))
        if inspect.isclass(target):
            inspect.signature(target).bind()
    except (TypeError, ValueError) as error:
        text = "is called with (event, step) only, and its class without arguments"
        raise InvalidConfig(f"workflow {shown} {text}: {error}") from None
    return function


def _checked_version(version: Any) -> str:
    if not isinstance(version, str) or not 1 <= len(version) <= 64 or not version.isprintable():
        raise InvalidConfig(f"version is {version!r:.80}; it must be text of 1 to 64 printable characters")
    return version


def _checked_count(value: Any, what: str, most: int | None = None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most and value > most):
        bounds = f"from 1 to {most:,}" if most else "of at least 1"
        raise InvalidConfig(f"{what} is {value!r}; it must be a whole number {bounds}")
    return value


def _checked_rate(value: Any) -> float | None:
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not isfinite(value) or value <= 0:
        raise InvalidConfig(
            f"creation_rate is {value!r}; it must be a number of instances per second above 0"
        )
    return float(value)


def _checked_rollback(value: Any) -> RollbackPolicy:
    policy = RollbackPolicy() if value is None else value
    if not isinstance(policy, RollbackPolicy):
        raise InvalidConfig(f"rollback is {value!r}; expected RollbackPolicy(order=…, on_error=…)")
    return policy


def _checked_errors(value: Any) -> tuple[type[Exception], ...]:
    if not isinstance(value, type | Iterable):
        raise InvalidConfig(f"errors is {value!r}; expected subclasses of Exception")
    several = (value,) if isinstance(value, type) else tuple(value)
    for each in several:
        if not _is_exception(each) or issubclass(each, StopIteration | StopAsyncIteration):
            raise InvalidConfig(f"errors holds {each!r}; expected subclasses of Exception")
    return several
