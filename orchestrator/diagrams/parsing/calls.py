"""Calls: of functions whose source is known, of asyncio's primitives, and of what is not known.

Owns: what a call means, and where arguments go. Does not own ``step.*`` (``steps``) or walking through the body of a
function (``statements``).
"""

from __future__ import annotations

import ast
import re

from orchestrator.diagrams.nodes import DYNAMIC, Node, Parallel
from orchestrator.diagrams.parsing.atoms import (
    NOTHING,
    UNKNOWN,
    Atom,
    Class,
    Decorated,
    External,
    Function,
    Group,
    Handle,
    Instance,
    Joined,
    Known,
    Maker,
    Opaque,
    Partial,
    Record,
    Row,
    Step,
    StepMethod,
    Value,
    Written,
)
from orchestrator.diagrams.parsing.awaiting import place_of
from orchestrator.diagrams.parsing.expressions import spelled
from orchestrator.diagrams.parsing.functions import FunctionCalls, has_function
from orchestrator.diagrams.parsing.scopes import MADE, is_path
from orchestrator.diagrams.parsing.steps import Arguments
from orchestrator.diagrams.parsing.values import (
    atoms,
    bounded,
    elements,
    items,
    joined,
    known,
    only,
    opaque,
    ordered,
    row,
    without_awaitables,
)

MAX_CALLEES = 6
CALLABLE = (StepMethod, Function, Partial, Class, Decorated, Maker, Group)
STARTERS = ("create_task", "ensure_future", "shield", "wait_for", "run_coroutine_threadsafe")
GATHERERS = ("gather", "wait", "as_completed")
COLLECTIONS = (
    "list",
    "tuple",
    "set",
    "frozenset",
    "sorted",
    "reversed",
    "iter",
    "enumerate",
    "zip",
    "chain",
    "deque",
)
FILLERS = ("append", "appendleft", "add", "extend", "insert", "update", "setdefault", "put_nowait", "put")
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\}")
"""A replacement field of ``str.format``, or a doubled brace."""
QUIET = (
    "builtins.",
    "typing.",
    "logging.",
    "contextlib.",
    "dataclasses.",
    "inspect.",
    "warnings.",
    "contextvars.",
)


class Calls(FunctionCalls):
    """Evaluates calls in the frame of the function that is walked through."""

    def call(self, node: ast.Call) -> Value:
        callee = self.value(node.func)
        primitive = _primitive(callee)
        if primitive in GATHERERS:
            return self._gather(primitive, node)
        arguments = self.arguments(node)
        if isinstance(node.func, ast.Attribute):
            filled = self._fill(node.func, arguments)
            if filled is not None:
                return filled
        return self.apply(callee, arguments, node)

    def arguments(self, node: ast.Call) -> Arguments:
        """The arguments of a call, evaluated in order."""
        found = Arguments()
        for each in node.args:
            if not isinstance(each, ast.Starred):
                held = self.value(each)
                if found.star is None:
                    found.positional.append(held)
                else:
                    found.star = joined([found.star, held])
                continue
            held = self.value(each.value)
            spread = only(held)
            if isinstance(spread, Row) and found.star is None:
                found.positional += spread.elements
            else:
                found.star = joined([found.star or NOTHING, elements(held)])
        for keyword in node.keywords:
            held = self.value(keyword.value)
            spread = only(held)
            if keyword.arg is not None:
                found.named[keyword.arg] = held
            elif isinstance(spread, Record):
                found.named |= dict(spread.fields)
            else:
                found.rest = joined([found.rest or NOTHING, elements(held)])
        return found

    def apply(self, callee: Value, arguments: Arguments, node: ast.expr) -> Value:
        """Call whatever a value stands for; several functions are drawn as alternatives."""
        matters = any(self.project.carries(each) or has_function(each) for each in arguments.values())
        callee = self.resolve(callee) if matters and not _special(callee) else callee
        callee = frozenset(callee | self._methods(callee, "__call__"))
        inside = [each for atom in callee if isinstance(atom, Opaque) for each in atom.contents]
        chosen: list[Atom] = [atom for atom in callee if isinstance(atom, CALLABLE)]
        chosen += [atom for atom in inside if isinstance(atom, (Function, StepMethod)) and atom not in chosen]
        if len(chosen) > MAX_CALLEES:
            self.mark(node, f"{self._shown(node)} may be one of {len(chosen)} functions", [])
            return opaque(joined(arguments.values()))
        if not chosen:
            chosen = [next((atom for atom in callee if isinstance(atom, External)), _unnamed(node))]
        if len(chosen) == 1:
            # A method of a collection, or of what is not understood, may give away what is in it.
            given = opaque(frozenset(inside)) if inside and isinstance(chosen[0], External) else NOTHING
            return joined([self._apply(chosen[0], arguments, node), given])
        with self.collecting() as nodes:
            results = [self._apply(atom, arguments, node) for atom in sorted(chosen, key=_identity)]
            found = joined([*map(without_awaitables, results), *(self.start(each, node) for each in results)])
        if len(nodes) > 1:
            self.mark(node, f"{self._shown(node)} is one of these", nodes)
        else:
            self.frame.out += nodes
        return found

    def _apply(self, atom: Atom, arguments: Arguments, node: ast.expr) -> Value:
        match atom:
            case StepMethod(name=name):
                return self.step_call(name, arguments, node)
            case Function():
                return self.function_call(atom, arguments, node)
            case Partial(callee, positional, named):
                merged = Arguments(
                    [*positional, *arguments.positional], {**dict(named), **arguments.named}, arguments.star,
                    arguments.rest,
                )  # fmt: skip
                return self.apply(callee, merged, node)
            case Class(number=number):
                return self._construct(self.project.classes[number], arguments, node)
            case Decorated():
                return self.decorated_call(atom, node)
            case Maker():
                function = only(arguments.positional[0]) if arguments.positional else None
                return self.decorate(atom, function) if isinstance(function, Function) else UNKNOWN
            case Group(place=place, method=True):
                started = self.start(joined(arguments.values()), node)
                self.frame.tasks.setdefault(place, []).extend(a for a in started if isinstance(a, Handle))
                return started or UNKNOWN
        return self._external(atom, arguments, node)

    def implied(
        self, value: Value, names: tuple[str, ...], given: int, node: ast.expr, *, awaited: bool
    ) -> Value:
        """Call the first of these methods that an object in ``value`` has, as the language does unseen (``with``,
        ``for``), with so many arguments; nothing if it has none."""
        for name in names:
            methods = self._methods(value, name)
            if methods:
                fresh = self.frame.state.order.started
                found = self.apply(methods, Arguments([UNKNOWN] * given), node)
                return self.settle(found, node, fresh) if awaited else found
        return NOTHING

    def _methods(self, value: Value, name: str) -> Value:
        """The methods of that name that objects in ``value`` have."""
        objects = frozenset(atom for atom in value if isinstance(atom, Instance))
        found = self.attribute(objects, name, None) if objects else NOTHING
        return frozenset(atom for atom in found if isinstance(atom, Function))

    def body(self, fn: Value, arguments: Arguments, node: ast.expr) -> list[Node]:
        # What a body starts is an error when it runs: it is drawn inside its step, and counts for nothing else.
        with self.peeking() as nodes:
            if any(isinstance(atom, (Function, Partial, StepMethod)) for atom in fn):
                self.start(self.apply(fn, arguments, node), node)
        return nodes

    # -- asyncio and the like -----------------------------------------------------------------------------

    def _gather(self, primitive: str, node: ast.Call) -> Value:
        with self.collecting() as nodes:
            arguments = self.arguments(node)
            futures = joined([*arguments.positional, arguments.star or NOTHING])
            handles = self.start(futures, node)
        kind = _kind(primitive, arguments)
        if nodes:
            self.frame.out.append(Parallel(line=place_of(node)[0], kind=kind, nodes=nodes))
        if primitive == "as_completed":
            return items(handles) if handles else UNKNOWN
        if primitive == "wait":
            return frozenset({Joined(row([items(handles), items(handles)]) if handles else UNKNOWN)})
        return frozenset({Joined(items(handles) if handles else UNKNOWN)})

    def _external(self, atom: Atom, arguments: Arguments, node: ast.expr) -> Value:
        name = atom.name if isinstance(atom, External) else ""
        last = name.rpartition(".")[2]
        given = joined(arguments.values())
        if last in STARTERS:
            return joined([self.start(given, node), without_awaitables(opaque(given))])
        if last == "Retries":
            return self.retry_policy(arguments)
        if last == "TaskGroup":
            return frozenset({Group(place_of(node))})
        if last == "partial" and arguments.positional:
            rest = tuple(arguments.positional[1:])
            return bounded(
                frozenset({Partial(arguments.positional[0], rest, tuple(arguments.named.items()))})
            )
        if name == "builtins.getattr" and len(arguments.positional) > 1:
            return self._getattr(arguments, node)
        if name == "builtins.super":
            return self._super()
        if name == "builtins.str" and len(arguments.positional) == 1:
            held = only(arguments.positional[0])
            return known(str(held.constant)) if isinstance(held, Known) else UNKNOWN
        if name == "builtins.dict" and not arguments.positional and arguments.rest is None:
            return bounded(frozenset({Record(tuple(arguments.named.items()))}))
        if name.startswith("datetime.") and _constants(arguments):
            return frozenset({Written(self.frame.module.text(node))})
        return self._unknown_call(name, last, arguments, node)

    def _unknown_call(self, name: str, last: str, arguments: Arguments, node: ast.expr) -> Value:
        """A call of something whose source is not known: functions given to it are thought to be called."""
        given = joined(arguments.values())
        if name.startswith("builtins.") and last in COLLECTIONS:
            return items(joined([elements(each) for each in arguments.values()])) if given else UNKNOWN
        if name == "builtins.map" and len(arguments.positional) > 1:
            return self._map(arguments, node)
        nodes, started = self._callbacks(arguments, node)
        if nodes:
            self.mark(node, f"called by {self._shown(node)}, source not known", nodes)
        elif not name.startswith(QUIET) and any(map(_shows_step, given)):
            self.mark(node, f"{self._shown(node)} gets the step object, source not known", [])
        held = opaque(joined([given, started]))
        if name and held == UNKNOWN and MADE not in name and not name.startswith(QUIET):
            return frozenset({External(name + MADE)})
        return held

    def _callbacks(self, arguments: Arguments, node: ast.expr) -> tuple[list[Node], Value]:
        """What the functions among the arguments draw when they are called, nobody knows with what."""
        functions = [
            atom
            for each in arguments.values()
            for atom in ordered(each)
            if isinstance(atom, (Function, StepMethod)) and self.project.carries(frozenset({atom}))
        ]
        given = Arguments(star=without_awaitables(opaque(joined(arguments.values()))))
        with self.collecting() as nodes:
            started = [self.start(self.apply(frozenset({atom}), given, node), node) for atom in functions]
        return nodes, joined(started)

    def _map(self, arguments: Arguments, node: ast.expr) -> Value:
        """``map(fn, items)``: a loop."""
        line, text = place_of(node)[0], self.frame.module.text(node)
        with self.looping(line, text):
            given = Arguments([elements(each) for each in arguments.positional[1:]])
            return items(self.apply(arguments.positional[0], given, node))

    def _fill(self, target: ast.Attribute, arguments: Arguments) -> Value | None:
        """``jobs.append(x)``, ``future.cancel()``, ``"{}".format(x)``: methods of what is no object of a class."""
        if target.attr == "format" and isinstance(target.value, (ast.Constant, ast.Name)):
            template = only(self.value(target.value))
            if isinstance(template, Known) and template.kind == "str":
                return spelled(
                    _FIELD.sub(lambda found: found[0][0] if found[1] is None else DYNAMIC, template.constant)
                )
        if target.attr == "cancel" or (target.attr in FILLERS and arguments.values()):
            base = self.glance(target.value) if is_path(target.value) else NOTHING
            if target.attr == "cancel":
                for atom in atoms(base):
                    self.frame.state.order.drop(atom)
                return UNKNOWN if base else None
            given = arguments.values()
            if not any(isinstance(a, (Function, Instance, Step, Class, Group)) for a in base):
                spread = target.attr in ("extend", "update")
                self.absorb(target.value, joined(elements(v) if spread else v for v in given))
                return joined(given) if target.attr == "setdefault" else UNKNOWN
        return None

    def _getattr(self, arguments: Arguments, node: ast.expr) -> Value:
        name = only(arguments.positional[1])
        if isinstance(name, Known) and name.kind == "str":
            return self.attribute(arguments.positional[0], str(name.constant), node)
        return opaque(arguments.positional[0])

    def _super(self) -> Value:
        owner = self.frame.info.owner
        return frozenset({Instance(owner.number, above=True)}) if owner is not None else UNKNOWN

    def _shown(self, node: ast.expr) -> str:
        return self.frame.module.text(node.func if isinstance(node, ast.Call) else node)


def _shown_field(found: re.Match[str]) -> str:
    return found[0][0] if found[1] is None else DYNAMIC


def _primitive(callee: Value) -> str:
    """``gather`` and its like, if it is asyncio's."""
    for atom in callee:
        if isinstance(atom, External) and atom.name.startswith("asyncio"):
            return atom.name.rpartition(".")[2]
    return ""


def _special(callee: Value) -> bool:
    """Whether it is imported and means something here, whatever its source."""
    special = (*STARTERS, "partial", "Retries", "TaskGroup")
    return any(isinstance(atom, External) and atom.name.rpartition(".")[2] in special for atom in callee)


def _unnamed(node: ast.expr) -> External:
    """What is called by a name only known in part: ``loop.create_task``."""
    func = node.func if isinstance(node, ast.Call) else node
    last = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    return External(
        f".{last}" if last == "Retries" or (isinstance(func, ast.Attribute) and last in STARTERS) else ""
    )


def _kind(primitive: str, arguments: Arguments) -> str:
    if primitive == "gather":
        settled = arguments.named.get("return_exceptions", known(False))
        return "all" if settled == known(False) else "all_settled"
    if primitive == "as_completed":
        return "race"
    when = only(arguments.named.get("return_when", NOTHING))
    text = when.name if isinstance(when, External) else str(getattr(when, "constant", ""))
    if text.endswith("FIRST_COMPLETED"):
        return "race"
    return "all" if text.endswith("FIRST_EXCEPTION") else "all_settled"


def _constants(arguments: Arguments) -> bool:
    return all(isinstance(only(each), (Known, Written, External)) for each in arguments.values())


def _shows_step(atom: Atom) -> bool:
    """Whether the step object is given openly: itself, or in a plain collection."""
    within = atoms(frozenset({atom})) if isinstance(atom, (Row, Record, Step, StepMethod)) else ()
    return any(isinstance(each, (Step, StepMethod)) for each in within)


def _identity(atom: Atom) -> tuple[str, int, str]:
    return (type(atom).__name__, getattr(atom, "number", 0), repr(getattr(atom, "name", "")))
