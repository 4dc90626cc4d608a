"""Steps made with ``@step.do(...)``: functions that say by their parameters which steps they need.

Owns: which earlier step a parameter means, resolving what a call needs, and sharing one run among all that ask for
it. Does not own: starting a step (``step``), keys, futures and order (``replay``).

A step knows those decorated before it, so what asks for what has no circles. A call with nothing to wait for starts
its step at once; else a task of the workflow's loop awaits what is needed first, and stands for the step.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from orchestrator.errors import InvalidConfig
from orchestrator.workflow.language.config import Retries
from orchestrator.workflow.language.durations import Duration

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


Options = tuple[
    Retries | None,
    Duration | None,
    bool,
    str | None,
    Callable[..., Any] | None,
    Retries | None,
    Duration | None,
]
"""The options of ``step.do``, as written: ``retries``, ``timeout``, ``sensitive``, ``queue``, ``rollback``,
``rollback_retries``, ``rollback_timeout``."""


class Place(NamedTuple):
    """Where a step is called, and its bounded name."""

    label: str
    line: int


class Starter(Protocol):
    """The part of ``WorkflowStep`` that decorated steps speak to."""

    def _check_caller(self, name: str) -> None: ...
    def _begin(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], place: Place, options: Options
    ) -> asyncio.Future[Any]: ...


@dataclass(slots=True)
class _Run:
    """One run of a step. ``waiting`` counts the calls of other steps that need it and have not begun."""

    future: asyncio.Future[Any]
    on_demand: bool
    waiting: int = 0


class DecoratedStep:
    """A function that is a step: calling it, without arguments, starts it and gives its future.

    The parameters are filled by name: with the result of the step of that name decorated before this one, and
    ``ctx`` with the ``StepContext``. A needed step that has not been called is started, once for all that need it;
    else its latest call counts. Calling raises ``TypeError`` for any other parameter, ``StepLimitExceeded``, and
    ``NotDurable`` outside of workflow code; everything else comes out of the await. A needed step that fails fails
    the call with the same error.
    """

    def __init__(
        self,
        step: Starter,
        name: str,
        fn: Callable[..., Any],
        label: str,
        concurrent: bool,
        options: Options,
        known: Mapping[str, DecoratedStep],
    ) -> None:
        self.__name__ = name
        self.__doc__ = fn.__doc__
        self._step = step
        self._fn = fn
        self._label = label
        self._concurrent = concurrent
        self._options = options
        self._known = known
        self._needs, self._unknown = _needs(fn, known)
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"<step {self.__name__!r}>"

    def __call__(self, *args: Any, **named: Any) -> asyncio.Future[Any]:
        """Start the step, after what it needs; awaiting gives its recorded result."""
        self._step._check_caller(self.__name__)
        if args or named:
            raise TypeError(
                f"step {self.__name__!r} is called without arguments: its parameters are filled with the results of "
                "the steps they are named after. Use step.do(name, fn, *args) to pass arguments."
            )
        return self._called(sys._getframe(1).f_lineno, on_demand=False)

    def __await__(self) -> Any:
        raise TypeError(f"step {self.__name__!r} is a function: write `await {self._fn.__name__}()`.")

    # -- inside -------------------------------------------------------------------------------------------

    def _called(self, line: int, *, on_demand: bool) -> asyncio.Future[Any]:
        if self._unknown is not None:
            raise TypeError(self._complaint(self._unknown))
        runs = self._demanded(line)
        if len(runs) == len(self._needs) and all(_is_there(run.future) for run in runs):
            future = self._start([run.future.result() for run in runs], line)
        else:
            for run in runs:
                run.waiting += 1
            future = asyncio.get_running_loop().create_task(self._after(runs, line), name=self.__name__)
            future.add_done_callback(lambda ended: _release(runs, ended))
        self._run = _Run(future, on_demand)
        return future

    def _start(self, values: list[Any], line: int) -> asyncio.Future[Any]:
        place = Place(self._label, line)
        return self._step._begin(self.__name__, self._fn, tuple(values), place, self._options)

    def _demanded(self, line: int) -> list[_Run]:
        """Runs of what this step needs, started where there is none: all of them, or those up to the first that is
        not there yet."""
        runs = []
        for needed in self._needs:
            runs.append(needed._run_of(line))
            if not (self._concurrent or _is_there(runs[-1].future)):
                break
        return runs

    def _run_of(self, line: int) -> _Run:
        """The run that others share. One that was cancelled gives no result, so there is another."""
        if self._run is None or self._run.future.cancelled():
            self._called(line, on_demand=True)
        assert self._run is not None
        return self._run

    async def _after(self, runs: list[_Run], line: int) -> Any:
        """Wait for what this step needs, one after the other or together, then run it. ``runs`` holds what is waited
        for: others may share it, so it is not cancelled with this call."""
        if self._concurrent:
            values = await asyncio.gather(*[asyncio.shield(run.future) for run in runs])
        else:
            values = [await asyncio.shield(run.future) for run in runs]
            for needed in self._needs[len(runs) :]:
                runs.append(needed._run_of(line))
                runs[-1].waiting += 1
                values.append(await asyncio.shield(runs[-1].future))
        return await self._start(values, line)

    def _complaint(self, parameter: str) -> str:
        text = f"step {self.__name__!r} has the parameter {parameter!r}, "
        if parameter in self._known:
            return text + (
                "which names the step itself or one that is decorated after it: a step may only ask for steps that "
                "are decorated before it."
            )
        known = ", ".join(sorted(self._known)) or "none"
        return text + (
            "which names no step: a parameter of a decorated step is `ctx` or the name of a step decorated before it "
            f"(decorated so far: {known}). Use step.do(name, fn, *args) to pass other arguments."
        )


class StepDecorator:
    """What ``step.do`` gives without a function: ``make`` turns the one it decorates into a step."""

    __slots__ = ("_make", "_name")

    def __init__(self, name: str | None, make: Callable[[Callable[..., Any]], DecoratedStep]) -> None:
        self._name = name
        self._make = make

    def __call__(self, fn: Callable[..., Any]) -> DecoratedStep:
        return self._make(fn)

    def __await__(self) -> Any:
        raise TypeError(
            f"step.do({'' if self._name is None else repr(self._name)}) was given no function to run, so it is a "
            "decorator: write `await step.do(name, fn, *args)`, or decorate a function and await a call of it."
        )


def name_of(name: Any, fn: Any) -> str:
    """The name of a decorated step: the one given, or that of its function. Raises ``InvalidConfig``."""
    if not callable(fn):
        raise InvalidConfig(f"@step.do decorates a function, not {type(fn).__name__}.")
    chosen: Any = getattr(fn, "__name__", None) if name is None else name
    if chosen is None:
        raise InvalidConfig(f"@step.do() of {fn!r}, which has no name: write @step.do(name).")
    return chosen  # type: ignore[no-any-return]  # checked as any step's name


def _needs(
    fn: Callable[..., Any], known: Mapping[str, DecoratedStep]
) -> tuple[tuple[DecoratedStep, ...], str | None]:
    """What the parameters of ``fn`` ask for, in order, and the first that asks for nothing there is."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return (), None
    found = []
    for parameter in parameters:
        if parameter.name == "ctx":
            continue
        if parameter.kind in _VARIABLE or parameter.name not in known:
            return (), parameter.name
        found.append(known[parameter.name])
    return tuple(found), None


def _is_there(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _release(runs: list[_Run], ended: asyncio.Future[Any]) -> None:
    """A call does not wait any more. If it was cancelled, so is what was started for it and nobody else needs."""
    for run in runs:
        run.waiting -= 1
        if ended.cancelled() and run.on_demand and not run.waiting:
            run.future.cancel()
