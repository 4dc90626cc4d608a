"""Calls of functions and classes whose source is known.

Owns: where the arguments of such a call go, and whether it is drawn. Does not own any other call (``calls``), nor
the walk through a function (``statements``).
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from functools import lru_cache

from orchestrator.diagrams.nodes import FunctionCall
from orchestrator.diagrams.parsing.atoms import (
    NOTHING,
    UNKNOWN,
    Coroutine,
    Function,
    Group,
    Handle,
    Instance,
    Partial,
    Value,
)
from orchestrator.diagrams.parsing.awaiting import place_of
from orchestrator.diagrams.parsing.project import ClassInfo, FunctionInfo
from orchestrator.diagrams.parsing.steps import Arguments, StepCalls
from orchestrator.diagrams.parsing.values import (
    atoms,
    awaitables,
    depth,
    flat,
    items,
    joined,
    opaque,
    without_awaitables,
)


class FunctionCalls(StepCalls):
    """Draws calls of functions in the frame of the function that is walked through."""

    @abstractmethod
    def learn(self, info: FunctionInfo) -> None:
        """Walk through a function, unless that was done in this round or is being done."""

    def function_call(self, function: Function, arguments: Arguments, node: ast.expr) -> Value:
        """Call a function whose source is known; it is drawn if it reaches a step."""
        info = self.project.functions[function.number]
        given = arguments.values()
        owner = frozenset({function.owner}) if function.owner is not None else NOTHING
        seen = any(self.project.carries(each) or has_function(each) for each in (*given, owner))
        if not (seen or info.is_nested or self.project.carries(frozenset({function}))):
            return UNKNOWN
        self._bind(info, owner, arguments)
        self.learn(info)
        awaited = joined(map(awaitables, given))
        if depth(awaited) > 1:  # coroutines given to coroutines: who awaits whom is told no further
            awaited = frozenset(atom for atom in flat(awaited) if isinstance(atom, Handle))
        if not info.reaches:
            return joined([info.returns, opaque(awaited)]) if awaited else info.returns or UNKNOWN
        place = (*place_of(node), info.number)  # several functions may be called at one place
        if info.is_coroutine and not info.is_generator:
            made = Coroutine(self.frame.info.number, place, info.number, tuple(self.frame.loops), awaited)
            self.made.add(made)
            is_eager = any((made.function, made.place) == (e.function, e.place) for e in self.project.eager)
            return self.start(frozenset({made}), node) if is_eager else frozenset({made})
        drawn = FunctionCall(line=place[0], function=info.number, recursive=info in self.walking)
        fresh = self.frame.state.order.started
        handle = self.begin(drawn, place)
        if not info.leaves and self.frame.state.order.is_fresh(handle, fresh):
            self.frame.state.order.passed(handle)
        for atom in frozenset().union(*given):
            if isinstance(atom, Group):  # what it started there, the group awaits
                self.frame.tasks.setdefault(atom.place, []).append(handle)
        return joined([info.returns, frozenset({handle}), opaque(awaited) if awaited else NOTHING])

    def property_value(self, function: Function, node: ast.expr) -> Value:
        return self.function_call(function, Arguments(), node)

    def _bind(self, info: FunctionInfo, owner: Value, arguments: Arguments) -> None:
        """Join the arguments to what the parameters of a function are known to be."""
        if info.node is None:
            return
        spec = info.node.args
        learn = self.project.learn
        given = [*([owner] if owner else []), *arguments.positional]
        names = [each.arg for each in (*spec.posonlyargs, *spec.args)]
        named = dict(arguments.named)
        for index, name in enumerate(names):
            if index < len(given):
                learn(info.parameters, name, without_awaitables(given[index]))
                continue
            held = [named.pop(name)] if name in named else []
            held += [each for each in (arguments.star, arguments.rest) if each is not None and not held]
            if held:
                learn(info.parameters, name, without_awaitables(joined(held)))
        for parameter in spec.kwonlyargs:
            found = named.pop(parameter.arg, arguments.rest)
            if found is not None:
                learn(info.parameters, parameter.arg, without_awaitables(found))
        if spec.vararg is not None:
            more = joined([*given[len(names) :], arguments.star or NOTHING])
            learn(info.parameters, spec.vararg.arg, items(without_awaitables(more)))
        if spec.kwarg is not None:
            more = joined([*named.values(), arguments.rest or NOTHING])
            learn(info.parameters, spec.kwarg.arg, items(without_awaitables(more)))

    def _construct(self, info: ClassInfo, arguments: Arguments, node: ast.expr) -> Value:
        """Make an object: what its constructor is given may be found in it later."""
        instance = frozenset({Instance(info.number)})
        for each in self.lineage(info):
            if "__init__" in each.bindings:
                method = self.attribute(instance, "__init__", None)
                for atom in method:
                    if isinstance(atom, Function):
                        self.function_call(atom, arguments, node)
                return instance
        fields = [
            each.target.id
            for base in reversed(self.lineage(info)) if base.is_dataclass
            for each in base.node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        ]  # fmt: skip
        for name, value in [*zip(fields, arguments.positional, strict=False), *arguments.named.items()]:
            self.project.learn(info.attributes, name, value)
        return instance


@lru_cache(maxsize=8_192)
def has_function(value: Value) -> bool:
    """Whether there is a function in it, which whoever gets it may call."""
    return any(isinstance(atom, (Function, Partial)) for atom in atoms(value))
