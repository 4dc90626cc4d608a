"""Statements: a walk through the body of a function.

Owns: every kind of statement, and the walk through one function. Does not own expressions (``expressions``) or how
often functions are walked through (``parser``).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from orchestrator.diagrams.flow import Flow, reaches
from orchestrator.diagrams.nodes import Block, Break
from orchestrator.diagrams.parsing.atoms import (
    NOTHING,
    UNKNOWN,
    Class,
    Function,
    Maker,
    Step,
    StepMethod,
    Value,
)
from orchestrator.diagrams.parsing.compound import CompoundStatements
from orchestrator.diagrams.parsing.project import FunctionInfo, Project
from orchestrator.diagrams.parsing.scopes import Frame
from orchestrator.diagrams.parsing.sources import FunctionNode
from orchestrator.diagrams.parsing.steps import Arguments
from orchestrator.diagrams.parsing.values import blurred, joined, only

MAX_NESTING = 20
"""Functions in functions that are walked through at once; those further in come later."""

STEP_CLASS = "WorkflowStep"


class Statements(CompoundStatements):
    """Walks through functions."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self.later: list[FunctionInfo] = []
        """Functions that are still to be walked through in this round."""

    def learn(self, info: FunctionInfo) -> None:
        if info.round == self.project.round or info.node is None:
            return
        if len(self.walking) >= MAX_NESTING:
            self.later.append(info)
            return
        info.round = self.project.round
        before = getattr(self, "frame", None)
        self.walking.append(info)
        frame = self.frame = Frame(info)
        try:
            self._walk(frame, info.node)
        except RecursionError:
            if len(self.walking) > 1:  # the stack is full of others: walk through this one by itself
                info.round -= 1
                self.later.append(info)
                return
            frame.out.append(Block(line=info.line, marked=f"{info.name} is nested too deep to be drawn"))
        finally:
            self.walking.pop()
            if before is not None:
                self.frame = before
        returned = joined([info.returns, frame.returned])
        leaves = info.leaves or frame.state.order.unresolved
        reached = info.reaches or any(map(reaches, frame.out))
        if (returned, leaves, reached) != (info.returns, info.leaves, info.reaches):
            self.project.changed = True
        info.returns, info.leaves, info.reaches = returned, leaves, reached
        info.nodes = frame.out

    def _walk(self, frame: Frame, node: FunctionNode) -> None:
        self._parameters(frame, node)
        if isinstance(node, ast.Lambda):
            frame.returned = joined([frame.returned, self.value(node.body)])
            return
        flow = self.block(node.body)
        last = frame.out[-1] if frame.out else None
        if flow is Flow.LEAVES and isinstance(last, Break) and last.kind == "return":
            frame.out.pop()  # the end is a return in any case

    def _parameters(self, frame: Frame, node: FunctionNode) -> None:
        info, spec = frame.info, node.args
        plain = [*spec.posonlyargs, *spec.args]
        defaults = dict(
            zip([each.arg for each in plain[len(plain) - len(spec.defaults) :]], spec.defaults, strict=True)
        )
        for keyword, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
            if default is not None:
                defaults[keyword.arg] = default
        every = [*plain, *spec.kwonlyargs, *(each for each in (spec.vararg, spec.kwarg) if each is not None)]
        for parameter in every:
            held = info.parameters.get(parameter.arg, NOTHING)
            if parameter.arg in defaults and not held:
                held = self._default(info, defaults[parameter.arg])
            if _is_step(parameter.annotation):
                held = joined([frozenset({Step()}), frozenset(a for a in held if a not in UNKNOWN)])
            frame.state.names[parameter.arg] = held or UNKNOWN
            self.project.learn(info.names, parameter.arg, held or UNKNOWN)

    def _default(self, info: FunctionInfo, node: ast.expr) -> Value:
        """A default is evaluated where the function is defined."""
        with self.within(info.parent or self.project.top(info.module)):
            return self.value(node)

    # -- blocks -------------------------------------------------------------------------------------------

    def block(self, body: Sequence[ast.stmt]) -> Flow:
        """Walk through statements up to where the flow leaves."""
        for statement in body:
            try:
                flow = self.statement(statement)
            except RecursionError:
                if len(self.walking) > 1:
                    raise
                self.mark(statement, "nested too deep to be drawn", [])
                flow = Flow.FALLS
            if flow is not Flow.FALLS:
                return flow
        return Flow.FALLS

    def statement(self, node: ast.stmt) -> Flow:
        method: Callable[[ast.stmt], Flow | None] | None = getattr(
            self, f"do_{type(node).__name__.lower()}", None
        )
        if method is not None:
            return method(node) or Flow.FALLS
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return Flow.FALLS

    # -- simple statements --------------------------------------------------------------------------------

    def do_functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        held = self.define(node)
        function = only(held)
        for decorator in reversed(node.decorator_list):
            maker = only(self.value(decorator))
            if maker == StepMethod("do"):  # without parentheses
                maker = self.maker(Arguments(), decorator)
            if isinstance(maker, Maker) and isinstance(function, Function):
                held = self.decorate(maker, function)
        self.bind(node.name, held)

    do_asyncfunctiondef = do_functiondef

    def do_classdef(self, node: ast.ClassDef) -> None:
        info = self.project.class_(node, self.frame.module, self.frame.info)
        self.bind(node.name, frozenset({Class(info.number)}))

    def do_return(self, node: ast.Return) -> Flow:
        if node.value is not None:
            self.frame.returned = joined([self.frame.returned, self.value(node.value)])
        self.frame.out.append(Break(line=node.lineno, kind="return"))
        return Flow.LEAVES

    def do_raise(self, node: ast.Raise) -> Flow:
        for each in (node.exc, node.cause):
            self.value(each)
        return Flow.RAISES

    def do_break(self, node: ast.Break | ast.Continue) -> Flow:
        label = "continue" if isinstance(node, ast.Continue) else ""
        self.frame.out.append(Break(line=node.lineno, kind="break", label=label))
        return Flow.JUMPS

    do_continue = do_break

    def do_assign(self, node: ast.Assign) -> None:
        match node.value, node.targets[0]:
            case ast.Lambda() as function, ast.Name(name):
                held = self.define(function, name)
            case _:
                held = self.value(node.value)
        for target in node.targets:
            self.assign(target, held)

    def do_annassign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.value(node.value))

    def do_augassign(self, node: ast.AugAssign) -> None:
        left = self._load(node.target)
        held = self.value(ast.copy_location(ast.BinOp(left, node.op, node.value), node))
        if isinstance(node.target, ast.Name):
            before = self.frame.state.names.get(node.target.id, NOTHING)
            self.bind(node.target.id, joined([held, blurred(before)]) if before and held == UNKNOWN else held)
        else:
            self.reassign(node.target, held)

    def _load(self, target: ast.expr) -> ast.expr:
        """An assigned target as an expression to read."""
        match target:
            case ast.Name(name):
                return ast.copy_location(ast.Name(name, ast.Load()), target)
            case ast.Attribute(base, name):
                return ast.copy_location(ast.Attribute(base, name, ast.Load()), target)
            case ast.Subscript(base, index):
                return ast.copy_location(ast.Subscript(base, index, ast.Load()), target)
        return target

    def do_delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._unbind(target)

    def _unbind(self, target: ast.expr) -> None:
        match target:
            case ast.Name(name):
                self.frame.state.names.pop(name, None)
            case ast.Attribute(base):
                self.value(base)
            case ast.Subscript(base, index):
                self.value(base)
                self.value(index)
            case ast.Tuple(targets) | ast.List(targets):
                for each in targets:
                    self._unbind(each)

    def do_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name == "*":
                continue
            if isinstance(node, ast.Import):
                dotted = alias.name if alias.asname else alias.name.partition(".")[0]
            else:
                dotted = f"{self.frame.module.absolute(node.module, node.level or 0)}.{alias.name}"
            name = alias.asname or (dotted if isinstance(node, ast.Import) else alias.name)
            self.bind(name, self.imported(dotted))

    do_importfrom = do_import

    def do_assert(self, node: ast.Assert) -> None:
        self.value(node.test)
        message = node.msg
        if message is None:
            return

        def fail() -> Flow:
            self.value(message)
            return Flow.RAISES

        self.choose([(self.negated(node.test), fail)], node)

    def do_typealias(self, node: ast.stmt) -> None:
        """Nothing runs."""


def _is_step(annotation: ast.expr | None) -> bool:
    """Whether a parameter is annotated as the step object."""
    match annotation:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name == STEP_CLASS
        case ast.Constant(value=str() as text):
            return text.rpartition(".")[2].strip() == STEP_CLASS
        case ast.BinOp(left, ast.BitOr(), right):
            return _is_step(left) or _is_step(right)
    return False
