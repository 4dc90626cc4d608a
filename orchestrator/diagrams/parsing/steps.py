"""Calls of ``step.*``: which node each becomes, and with which configuration.

Owns: the arguments of the step methods, decorated steps and what they depend on. Does not own any other call
(``calls``).
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from orchestrator.diagrams.nodes import (
    UNKNOWN as UNKNOWN_TEXT,
)
from orchestrator.diagrams.nodes import (
    Json,
    Node,
    Parallel,
    StepDo,
    StepInvoke,
    StepSleep,
    StepSleepUntil,
    StepWaitForEvent,
)
from orchestrator.diagrams.parsing.atoms import (
    UNKNOWN,
    Class,
    Decorated,
    External,
    Function,
    Handle,
    Known,
    Maker,
    RetryPolicy,
    Value,
)
from orchestrator.diagrams.parsing.awaiting import Place, place_of
from orchestrator.diagrams.parsing.expressions import Expressions
from orchestrator.diagrams.parsing.project import Project
from orchestrator.diagrams.parsing.scopes import STEP_METHODS
from orchestrator.diagrams.parsing.values import known, only, scalar

DEFAULT_RETRIES: Json = {"limit": 5, "delay": "10 seconds", "backoff": "exponential"}
DEFAULT_TIMEOUT = "10 minutes"
DEFAULT_EVENT_TIMEOUT = "24 hours"


@dataclass
class Arguments:
    """The arguments of a call, evaluated. ``star`` and ``rest``: what ``*`` and ``**`` add that is not known."""

    positional: list[Value] = field(default_factory=list)
    named: dict[str, Value] = field(default_factory=dict)
    star: Value | None = None
    rest: Value | None = None

    def get(self, index: int | None, name: str) -> Value | None:
        """An argument by position or name; ``None`` if it was not given, not known if it may have been."""
        if index is not None and index < len(self.positional):
            return self.positional[index]
        if name in self.named:
            return self.named[name]
        if self.rest is not None or (index is not None and self.star is not None):
            return UNKNOWN
        return None

    def values(self) -> list[Value]:
        """Every argument."""
        more = [each for each in (self.star, self.rest) if each is not None]
        return [*self.positional, *self.named.values(), *more]


@dataclass
class Recipe:
    """A decorated step: what each call of it draws."""

    name: str
    arguments: Arguments
    concurrent: bool
    parameters: list[str]
    line: int


class StepCalls(Expressions):
    """Draws the steps of the function that is walked through."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self._makers: dict[tuple[int, Place], Arguments] = {}
        self._recipes: dict[Decorated, Recipe] = {}

    @abstractmethod
    def body(self, fn: Value, arguments: Arguments, node: ast.expr) -> list[Node]:
        """What a step's function would draw."""

    def step_call(self, method: str, arguments: Arguments, node: ast.expr) -> Value:
        """Draw one call of ``step.<method>``; gives its future."""
        if method == "do" and arguments.get(1, "fn") is None:
            function = only(arguments.get(0, "name") or UNKNOWN)
            if isinstance(function, Function):
                return self.decorate(self.maker(Arguments(), node), function)
            return frozenset({self.maker(arguments, node)})
        drawn = self._node(method, arguments, node)
        return frozenset({self.begin(drawn, (*place_of(node), STEP_METHODS.index(method)))})

    def _node(self, method: str, arguments: Arguments, node: ast.expr) -> Node:
        line, name = place_of(node)[0], self._text(arguments.get(0, "name"))
        match method:
            case "do":
                inside = Arguments(arguments.positional[2:], {}, arguments.star)
                fn = arguments.get(1, "fn") or UNKNOWN
                return self._do(name, arguments, line, self.body(fn, inside, node))
            case "sleep":
                return StepSleep(line=line, name=name, duration=self._setting(arguments.get(1, "duration")))
            case "sleep_until":
                return StepSleepUntil(line=line, name=name, timestamp=self._setting(arguments.get(1, "when")))
            case "wait_for_event":
                return StepWaitForEvent(
                    line=line,
                    name=name,
                    event_type=self._setting(arguments.get(None, "type")),
                    timeout=self._setting(arguments.get(None, "timeout"), DEFAULT_EVENT_TIMEOUT),
                    rollback=_given(arguments.named.get("rollback")),
                )
        child = arguments.get(1, "workflow") or UNKNOWN
        timeout = arguments.get(None, "timeout")
        return StepInvoke(
            line=line,
            name=name,
            workflow=self._called(child, node),
            timeout=self._setting(timeout) if _given(timeout) else None,
        )

    def _do(self, name: str, arguments: Arguments, line: int, nodes: list[Node]) -> StepDo:
        config = {
            "retries": self._retries(arguments.get(None, "retries")),
            "timeout": self._setting(arguments.get(None, "timeout"), DEFAULT_TIMEOUT),
        }
        rollback = _given(arguments.named.get("rollback"))
        return StepDo(line=line, name=name, config=config, nodes=nodes, rollback=rollback)

    # -- configuration ------------------------------------------------------------------------------------

    def retry_policy(self, arguments: Arguments) -> Value:
        """What a call of ``Retries`` stands for."""
        given = [arguments.get(index, name) for index, name in enumerate(DEFAULT_RETRIES)]
        defaults = map(known, DEFAULT_RETRIES.values())
        limit, delay, backoff = (
            default if each is None else each for each, default in zip(given, defaults, strict=True)
        )
        return frozenset({RetryPolicy(limit, delay, backoff)})

    def _retries(self, value: Value | None) -> Json:
        if value is None or value == known(None):
            return dict(DEFAULT_RETRIES)
        policy = only(self.resolve(value))
        if not isinstance(policy, RetryPolicy):
            return dict.fromkeys(DEFAULT_RETRIES, UNKNOWN_TEXT)
        return {
            "limit": self._setting(policy.limit),
            "delay": self._setting(policy.delay),
            "backoff": self._setting(policy.backoff),
        }

    def _setting(self, value: Value | None, default: Any = UNKNOWN_TEXT) -> Any:
        """A value of the configuration as JSON; ``None`` stands for the default."""
        if value is None or value == known(None):
            return default
        value = self.resolve(value)
        found = only(value)
        if isinstance(found, Function):
            return self.project.functions[found.number].name
        return scalar(value)

    def _text(self, value: Value | None) -> str:
        """The name of a step."""
        found = self._setting(value)
        return found if isinstance(found, str) else UNKNOWN_TEXT

    def _called(self, value: Value, node: ast.expr) -> str:
        """What a child workflow is called in the source."""
        match only(self.resolve(value)):
            case Function(number=number):
                return self.project.functions[number].name
            case Class(number=number):
                return self.project.classes[number].node.name
            case External(name=name):
                return name.rpartition(".")[2]
            case Known("str", name):
                return str(name)
        given = node.args[1:2] if isinstance(node, ast.Call) else []
        return self.frame.module.text(given[0]) if given and isinstance(given[0], ast.Name) else UNKNOWN_TEXT

    # -- decorated steps ----------------------------------------------------------------------------------

    def maker(self, arguments: Arguments, node: ast.expr) -> Maker:
        """A decorator: ``step.do`` with these arguments and no function."""
        place = place_of(node)
        self._makers[self.frame.info.number, place] = arguments
        return Maker(place)

    def decorate(self, maker: Maker, function: Function) -> Value:
        """A function decorated with ``@step.do("name")``."""
        arguments = self._makers.get((self.frame.info.number, maker.place), Arguments())
        info = self.project.functions[function.number]
        name = arguments.get(0, "name")
        chosen = info.name if name is None or name == known(None) else self._text(name)
        spec = info.node.args if info.node is not None else None
        parameters = [each.arg for each in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)] if spec else []
        concurrent = arguments.get(None, "concurrent") == known(True)
        step = Decorated(self.frame.info.number, maker.place)
        self._recipes[step] = Recipe(chosen, arguments, concurrent, parameters, info.line)
        return frozenset({step})

    def decorated_call(self, step: Decorated, site: ast.expr) -> Value:
        """Draw a call of a decorated step, after those it asks for that have not run."""
        if step not in self._recipes:
            return UNKNOWN
        handle, _ = self._cook(step, site, (), ())
        return frozenset({handle})

    def _cook(
        self, step: Decorated, site: ast.expr, above: tuple[Decorated, ...], after: tuple[Handle, ...]
    ) -> tuple[Handle, dict[Handle, bool]]:
        """Draw one run of a step, not before ``after`` has ended; gives it, and what was started for it."""
        recipe, ran = self._recipes[step], self.frame.state.ran
        waits, chain = list(after), dict[Handle, bool]()
        above = (*above, step)
        asked = [each for each in self._asked(recipe, step.function) if each not in above]
        together = recipe.concurrent and sum(each not in ran for each in asked) > 1
        with self.collecting() as nodes:
            for each in asked:
                if each not in ran:
                    run, more = self._cook(each, site, above, after if recipe.concurrent else tuple(waits))
                    chain |= {run: together, **{other: together or joint for other, joint in more.items()}}
                waits.append(ran[each])
        self.frame.out += [Parallel(line=recipe.line, kind="all", nodes=nodes)] if together else nodes
        place = (*step.place, *place_of(site))
        node = self._do(recipe.name, recipe.arguments, place_of(site)[0], [])
        ran[step] = self.begin(node, place, waits, chain)
        return ran[step], chain

    def _asked(self, recipe: Recipe, function: int) -> list[Decorated]:
        """The steps that the parameters name: those of the same function before others."""
        named = {
            each.name: step
            for own in (False, True)
            for step, each in self._recipes.items()
            if (step.function == function) is own
        }
        return [named[name] for name in dict.fromkeys(recipe.parameters) if name != "ctx" and name in named]


def _given(value: Value | None) -> bool:
    """Whether an argument was given and is not ``None``."""
    return value is not None and value != known(None)
