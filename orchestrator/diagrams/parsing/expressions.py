"""Expressions: what they stand for, and what they start on the way.

Owns: every kind of expression but calls. Does not own calls (``steps``, ``calls``). What is not understood is looked
through: its parts are evaluated in order, and whatever they hold may come out of it.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from orchestrator.diagrams.flow import Flow
from orchestrator.diagrams.nodes import DYNAMIC, If
from orchestrator.diagrams.parsing.atoms import (
    UNKNOWN,
    External,
    Function,
    Known,
    Record,
    Text,
    Value,
    Written,
)
from orchestrator.diagrams.parsing.awaiting import Awaiting, place_of
from orchestrator.diagrams.parsing.scopes import element
from orchestrator.diagrams.parsing.sources import FunctionNode
from orchestrator.diagrams.parsing.values import bounded, elements, items, joined, known, only, opaque, row

MAX_NUMBER = 10**15
MAX_NAME = 1_000

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_PLACEHOLDER = re.compile(r"%(?:\([^)]*\))?[-+ #0-9.*]*[a-zA-Z]|%%")


class Expressions(Awaiting):
    """Evaluates expressions in the frame of the function that is walked through."""

    @abstractmethod
    def call(self, node: ast.Call) -> Value:
        """What a call gives; what it starts is drawn."""

    def value(self, node: ast.expr | None) -> Value:
        """What an expression stands for; what it starts is drawn."""
        if node is None:
            return UNKNOWN
        method = getattr(self, f"on_{type(node).__name__.lower()}", None)
        return method(node) if method is not None else self._other(node)

    def define(self, node: FunctionNode, name: str = "") -> Value:
        """A function that is defined here."""
        return frozenset(
            {Function(self.project.function(node, self.frame.module, self.frame.info, None, name).number)}
        )

    # -- plain things -------------------------------------------------------------------------------------

    def _other(self, node: ast.expr) -> Value:
        parts = [self._part(child) for child in ast.iter_child_nodes(node)]
        return opaque(joined(parts))

    def _part(self, node: ast.AST) -> Value:
        """Part of an expression that is not understood; not all parts are expressions (``case``, keywords)."""
        if isinstance(node, ast.expr):
            return self.value(node)
        return joined(self._part(child) for child in ast.iter_child_nodes(node))

    def on_constant(self, node: ast.Constant) -> Value:
        match node.value:
            case None | bool() | str():
                return known(node.value)
            case int() if abs(node.value) <= MAX_NUMBER:  # Python refuses to write very long ones
                return known(node.value)
            case float() if math.isfinite(node.value):
                return known(node.value)
        return frozenset({Written(self.frame.module.text(node))})

    def on_name(self, node: ast.Name) -> Value:
        return self.lookup(node.id)

    def on_attribute(self, node: ast.Attribute) -> Value:
        return self.attribute(self.value(node.value), node.attr, node)

    def on_compare(self, node: ast.Compare) -> Value:
        self._other(node)
        return UNKNOWN

    def on_lambda(self, node: ast.Lambda) -> Value:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.value(default)
        return self.define(node)

    def on_call(self, node: ast.Call) -> Value:
        return self.call(node)

    def on_namedexpr(self, node: ast.NamedExpr) -> Value:
        held = self.value(node.value)
        self.assign(node.target, held)
        return held

    def on_starred(self, node: ast.Starred) -> Value:
        return items(elements(self.value(node.value)))

    def on_await(self, node: ast.Await) -> Value:
        fresh = self.frame.state.order.started
        return self.settle(self.value(node.value), node, fresh)

    def on_yield(self, node: ast.Yield) -> Value:
        held = self.value(node.value)
        if node.value is not None:
            self.frame.returned = joined([self.frame.returned, items(held)])
        return UNKNOWN

    def on_yieldfrom(self, node: ast.YieldFrom) -> Value:
        self.frame.returned = joined([self.frame.returned, self.value(node.value)])
        return UNKNOWN

    # -- text and numbers ---------------------------------------------------------------------------------

    def on_joinedstr(self, node: ast.JoinedStr) -> Value:
        pieces: list[str] = []
        for each in node.values:
            if isinstance(each, ast.FormattedValue):
                held = self.value(each.value)
                if each.format_spec is not None:
                    self.value(each.format_spec)
                pieces.append(
                    DYNAMIC if each.format_spec is not None or each.conversion != -1 else spoken(held)
                )
            else:
                pieces.append(spoken(self.value(each)))
        return spelled("".join(pieces))

    def on_unaryop(self, node: ast.UnaryOp) -> Value:
        held = self.value(node.operand)
        match only(held), node.op:
            case Known("int" | "float", number), ast.USub():
                return known(-number)
            case Written(), ast.USub():
                return frozenset({Written(self.frame.module.text(node))})
            case Known("bool", truth), ast.Not():
                return known(not truth)
        return UNKNOWN

    def on_binop(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        first, second = only(left), only(right)
        if isinstance(first, Known) and isinstance(second, Known):
            folded = _fold(node.op, first, second)
            if folded is not None:
                return folded
        textual = [each for each in (first, second) if isinstance(each, Text) or _is_text(each)]
        if isinstance(node.op, ast.Add) and textual:
            return spelled(spoken(left) + spoken(right))
        if isinstance(node.op, ast.Mod) and isinstance(first, Known) and _is_text(first):
            shown = _PLACEHOLDER.sub(lambda found: "%" if found[0] == "%%" else DYNAMIC, str(first.constant))
            return spelled(shown)
        if isinstance(first, (Known, Written)) and isinstance(second, (Known, Written)):
            return frozenset({Written(self.frame.module.text(node))})
        return opaque(joined([left, right]))

    # -- collections --------------------------------------------------------------------------------------

    def on_tuple(self, node: ast.Tuple | ast.List) -> Value:
        held = [self.value(each) for each in node.elts]
        if any(isinstance(each, ast.Starred) for each in node.elts):
            plain = [
                elements(v) if isinstance(e, ast.Starred) else v for e, v in zip(node.elts, held, strict=True)
            ]
            return items(joined(plain))
        return row(held)

    on_list = on_tuple

    def on_set(self, node: ast.Set) -> Value:
        return items(joined(self.value(each) for each in node.elts))

    def on_dict(self, node: ast.Dict) -> Value:
        fields: list[tuple[str, Value]] = []
        rest: list[Value] = []
        for key, each in zip(node.keys, node.values, strict=True):
            name = only(self.value(key)) if key is not None else None
            held = self.value(each)
            if key is None:
                merged = only(held)
                if isinstance(merged, Record):
                    fields += merged.fields
                else:
                    rest.append(elements(held))
            elif isinstance(name, Known) and name.kind == "str":
                fields.append((str(name.constant), held))
            else:
                rest.append(held)
        if rest:
            return items(joined([*rest, *(value for _, value in fields)]))
        return bounded(frozenset({Record(tuple(dict(fields).items()))}))

    def on_subscript(self, node: ast.Subscript) -> Value:
        held = self.value(node.value)
        index = only(self.value(node.slice))
        found: list[Value] = []
        for atom in held:
            match atom, index:
                case Record(fields), Known("str", name) if name in dict(fields):
                    found.append(dict(fields)[str(name)])
                case External(), _:
                    found.append(frozenset({atom}))  # a type with its parameters
                case _, Known("int", number):
                    found.append(element(frozenset({atom}), number))
                case _:
                    found.append(elements(frozenset({atom})))
        if isinstance(node.slice, ast.Slice):
            return items(joined(found))
        return joined(found) or UNKNOWN

    def on_listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Value:
        return items(self._comprehension(node.generators, lambda: self.value(node.elt)))

    on_setcomp = on_listcomp
    on_generatorexp = on_listcomp

    def on_dictcomp(self, node: ast.DictComp) -> Value:
        def pair() -> Value:
            self.value(node.key)
            return self.value(node.value)

        return items(self._comprehension(node.generators, pair))

    def _comprehension(self, generators: list[ast.comprehension], element_: Callable[[], Value]) -> Value:
        if not generators:
            return element_()
        first, rest = generators[0], generators[1:]
        source = elements(self.value(first.iter))
        module = self.frame.module
        label = f"for {module.text(first.target)} in {module.text(first.iter)}"
        names = dict(self.frame.state.names)
        with self.looping(place_of(first.target)[0], label):
            self.assign(first.target, self.settled(source, first) if first.is_async else source)
            found: list[Value] = []

            def inner() -> Flow:
                found.append(self._comprehension(rest, element_))
                return Flow.FALLS

            if first.ifs:
                for test in first.ifs:
                    self.value(test)
                self.choose([(" and ".join(module.text(test) for test in first.ifs), inner)], first.target)
            else:
                inner()
        self.frame.state.names = names
        return joined(found)

    def settled(self, value: Value, site: ast.AST) -> Value:
        """A value of which every element is awaited, as ``async for`` does."""
        return self.settle(value, site, self.frame.state.order.started)

    # -- branches -----------------------------------------------------------------------------------------

    def choose(
        self, ways: list[tuple[str | None, Callable[[], Flow]]], site: ast.AST, *, exhaustive: bool = False
    ) -> Flow:
        """Draw an ``if`` over these ways, if there is anything in them; how they end."""
        branches, flow = self.alternatives(ways, exhaustive=exhaustive)
        if any(branch.nodes for branch in branches):
            self.frame.out.append(If(line=place_of(site)[0], branches=branches))
        return flow

    def on_ifexp(self, node: ast.IfExp) -> Value:
        self.value(node.test)
        found: list[Value] = []
        condition = self.frame.module.text(node.test)
        ways = [(condition, self._way(node.body, found)), (None, self._way(node.orelse, found))]
        self.choose(ways, node, exhaustive=True)
        return joined(found)

    def on_boolop(self, node: ast.BoolOp) -> Value:
        return self._operands(node, node.values)

    def _operands(self, node: ast.BoolOp, operands: list[ast.expr]) -> Value:
        first, rest = operands[0], operands[1:]
        held = self.value(first)
        if not rest:
            return held
        text = self.negated(first) if isinstance(node.op, ast.Or) else self.frame.module.text(first)
        found = [held]

        def inner() -> Flow:
            found.append(self._operands(node, rest))
            return Flow.FALLS

        self.choose([(text, inner)], first)
        return joined(found)

    def negated(self, node: ast.expr) -> str:
        """The source of the opposite of a condition."""
        text = self.frame.module.text(node)
        simple = (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant, ast.Await)
        return f"not {text}" if isinstance(node, simple) else f"not ({text})"

    def _way(self, node: ast.expr, found: list[Value]) -> Callable[[], Flow]:
        def walk() -> Flow:
            found.append(self.value(node))
            return Flow.FALLS

        return walk


def spoken(value: Value) -> str:
    """A value as part of a text."""
    match only(value):
        case Known(_, constant):
            return str(constant)
        case Text(template=text):
            return text
    return DYNAMIC


def spelled(text: str) -> Value:
    """Text of which parts may be unknown."""
    if len(text) > MAX_NAME:
        return UNKNOWN
    text = re.sub(r"(?:\$\{\.\.\.\}){2,}", DYNAMIC, text)
    return frozenset({Text(text)}) if DYNAMIC in text else known(text)


def _is_text(atom: object) -> bool:
    return isinstance(atom, Known) and atom.kind == "str"


def _fold(op: ast.operator, left: Known, right: Known) -> Value | None:
    """Arithmetic on small constants, and text put together."""
    numeric = {left.kind, right.kind} <= {"int", "float"}
    if _is_text(left) and _is_text(right) and isinstance(op, ast.Add):
        return spelled(left.constant + right.constant)
    if (
        not numeric
        or max(abs(left.constant), abs(right.constant)) > MAX_NUMBER
        or type(op) not in _ARITHMETIC
    ):
        return None
    try:
        return known(_ARITHMETIC[type(op)](left.constant, right.constant))
    except ArithmeticError:
        return None
