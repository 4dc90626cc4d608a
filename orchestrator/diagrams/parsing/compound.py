"""Compound statements: branches, loops, ``with`` and ``try``.

Owns: the frames they become, and what holds after them. Does not own simple statements, nor the walk through a
function (``statements``).
"""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Callable, Sequence

from orchestrator.diagrams.flow import Flow, matters
from orchestrator.diagrams.nodes import Block, Branch, Break, If, Loop, Node, Parallel, Switch, Try
from orchestrator.diagrams.parsing.atoms import NOTHING, UNKNOWN, Group, Value
from orchestrator.diagrams.parsing.calls import Calls
from orchestrator.diagrams.parsing.scopes import State
from orchestrator.diagrams.parsing.sources import own_statements
from orchestrator.diagrams.parsing.values import blurred, elements, joined, without_awaitables

# The methods that the language calls unseen: without and with ``async``.
_ENTER, _EXIT = (("__enter__",), ("__aenter__",)), (("__exit__",), ("__aexit__",))
_ITER, _NEXT = (("__iter__", "__getitem__"), ("__aiter__",)), (("__next__",), ("__anext__",))


class CompoundStatements(Calls):
    """Walks through the statements that hold others."""

    @abstractmethod
    def block(self, body: Sequence[ast.stmt]) -> Flow:
        """Walk through statements up to where the flow leaves."""

    def inside(self, body: Sequence[ast.stmt]) -> tuple[list[Node], Flow]:
        """What a block draws, and how it ends."""
        with self.collecting() as nodes:
            flow = self.block(body)
        return nodes, flow

    # -- branches -----------------------------------------------------------------------------------------

    def do_if(self, node: ast.If) -> Flow:
        ways: list[tuple[str | None, Callable[[], Flow]]] = []
        each: ast.If | None = node
        self.value(node.test)
        while each is not None:
            ways.append((self.frame.module.text(each.test), self._body(each.body)))
            rest = each.orelse
            each = (
                rest[0]
                if len(rest) == 1 and isinstance(rest[0], ast.If) and self._is_plain(rest[0].test)
                else None
            )
            if each is not None:
                self.value(each.test)
            elif rest:
                ways.append((None, self._body(rest)))
        return self.choose(ways, node, exhaustive=ways[-1][0] is None)

    def _is_plain(self, test: ast.expr) -> bool:
        """Whether evaluating it draws nothing: then ``elif`` stands beside its ``if``."""
        with self.peeking() as nodes:
            self.value(test)
        return not nodes

    def _body(self, body: Sequence[ast.stmt]) -> Callable[[], Flow]:
        return lambda: self.block(body)

    def do_match(self, node: ast.Match) -> Flow:
        subject = self.value(node.subject)
        ways = [(self._pattern(case), self._case(case, subject)) for case in node.cases]
        exhaustive = any(condition is None for condition, _ in ways)
        branches, flow = self.alternatives(ways, exhaustive=exhaustive)
        if any(branch.nodes for branch in branches):
            text = self.frame.module.text(node.subject)
            self.frame.out.append(Switch(line=node.lineno, discriminant=text, branches=branches))
        return flow

    def _pattern(self, case: ast.match_case) -> str | None:
        text = self.frame.module.text(case.pattern)
        is_default = isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
        if case.guard is None:
            return None if is_default else text
        return f"{text} if {self.frame.module.text(case.guard)}"

    def _case(self, case: ast.match_case, subject: Value) -> Callable[[], Flow]:
        def walk() -> Flow:
            for each in ast.walk(case.pattern):
                name = getattr(each, "name", None) or getattr(each, "rest", None)
                if isinstance(each, (ast.MatchAs, ast.MatchStar, ast.MatchMapping)) and name:
                    self.bind(name, subject if each is case.pattern else elements(subject))
            if case.guard is not None:
                self.value(case.guard)
            return self.block(case.body)

        return walk

    # -- loops --------------------------------------------------------------------------------------------

    def do_for(self, node: ast.For | ast.AsyncFor) -> Flow:
        is_async = isinstance(node, ast.AsyncFor)
        source = self.value(node.iter)
        made = self.implied(source, _ITER[is_async], 0, node.iter, awaited=False) or source
        head = self.frame.module.text
        word = "async for" if is_async else "for"

        def start() -> None:
            held = self.implied(made, _NEXT[is_async], 0, node.iter, awaited=is_async) or elements(made)
            held = self.settled(held, node.iter) if is_async else held
            self.assign(node.target, held)

        return self._loop(node, f"{word} {head(node.target)} in {head(node.iter)}", start)

    do_asyncfor = do_for

    def do_while(self, node: ast.While) -> Flow:
        flow = self._loop(node, f"while {self.frame.module.text(node.test)}", lambda: self.value(node.test))
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        if endless and not any(isinstance(each, ast.Break) for each in own_statements(node.body)):
            return Flow.LEAVES
        return flow

    def _loop(
        self, node: ast.For | ast.AsyncFor | ast.While, label: str, start: Callable[[], object]
    ) -> Flow:
        self._forget(node)
        self.frame.loops.append((node.lineno, label))
        entry = self.frame.state.fork()
        try:
            with self.collecting() as nodes:
                start()
                self.block(node.body)
        finally:
            self.frame.loops.pop()
        for name, held in entry.names.items():  # the loop may not have run at all
            self.frame.state.names[name] = joined([held, self.frame.state.names.get(name, NOTHING)])
        if matters(nodes):
            self.frame.out.append(Loop(line=node.lineno, nodes=nodes, label=label))
        if not node.orelse:
            return Flow.FALLS
        after, flow = self.inside(node.orelse)
        jumps = any(isinstance(each, ast.Break) for each in own_statements(node.body))
        if not jumps:
            self.frame.out += after
            return flow
        if after:
            self.frame.out.append(Block(line=node.orelse[0].lineno, nodes=after, label="if no break"))
        return Flow.FALLS

    def _forget(self, node: ast.stmt) -> None:
        """Names assigned in a loop may have any of their values when an iteration begins."""
        self._recall([node])
        names = self.frame.state.names
        for name in _assigned([node]) & names.keys():
            names[name] = blurred(names[name])

    def _recall(self, body: Sequence[ast.stmt]) -> None:
        """Names assigned in a block may have any of the values that they are ever assigned in it."""
        names = self.frame.state.names
        for name in _assigned(body) & names.keys():
            names[name] = joined([names[name], self.frame.info.names.get(name, NOTHING)])

    # -- with and try -------------------------------------------------------------------------------------

    def do_with(self, node: ast.With | ast.AsyncWith) -> Flow:
        groups: list[Group] = []
        is_async = isinstance(node, ast.AsyncWith)
        entered: list[tuple[Value, ast.expr]] = []
        for item in node.items:
            held = self.value(item.context_expr)
            groups += [atom for atom in held if isinstance(atom, Group)]
            entered.append((held, item.context_expr))
            held = self.implied(held, _ENTER[is_async], 0, item.context_expr, awaited=is_async) or held
            if item.optional_vars is not None:
                self.assign(item.optional_vars, without_awaitables(held))
        nodes, flow = self.inside(node.body)
        with self.collecting() as left:
            for held, at in reversed(entered):
                self.implied(held, _EXIT[is_async], 3, at, awaited=is_async)
        nodes += left
        for group in groups:
            self.frame.state.order.resolve(self.frame.tasks.get(group.place, ()))
        if not nodes:
            return flow
        if groups:
            self.frame.out.append(Parallel(line=node.lineno, kind="all", nodes=nodes))
        elif any(not isinstance(each, Break) for each in nodes):
            word = "async with" if is_async else "with"
            text = ", ".join(self.frame.module.text(item.context_expr) for item in node.items)
            self.frame.out.append(Block(line=node.lineno, nodes=nodes, label=f"{word} {text}"))
        else:
            self.frame.out += nodes
        return flow

    do_asyncwith = do_with

    def do_try(self, node: ast.Try) -> Flow:
        entry = self.frame.state.fork()
        tried, tried_flow = self.inside([*node.body, *node.orelse])
        body_end = self.frame.state
        ends: list[tuple[Flow, State]] = [(tried_flow, body_end)]
        branches: list[Branch] = []
        for handler in node.handlers:
            self.frame.state = entry.fork().join([body_end])
            self._recall(node.body)
            if handler.name:
                self.bind(handler.name, UNKNOWN)
            nodes, ended = self.inside(handler.body)
            condition = None if handler.type is None else self.frame.module.text(handler.type)
            branches.append(Branch(condition=condition, nodes=nodes, raises=ended is Flow.RAISES))
            ends.append((ended, self.frame.state))
        states = [state for ended, state in ends if not ended.ends] or [state for _, state in ends]
        self.frame.state = states[0].fork().join(states[1:])
        flow = min((ended for ended, _ in ends), key=lambda each: each.value)
        if node.finalbody:
            self._recall([*node.body, *node.orelse, *(each for h in node.handlers for each in h.body)])
        last, final = self.inside(node.finalbody)
        first = node.body[0].lineno
        tried_block = Block(line=first, nodes=tried, raises=tried_flow is Flow.RAISES)
        self._draw_try(node, tried_block, branches, last)
        return flow if final is Flow.FALLS else final

    do_trystar = do_try

    def _draw_try(self, node: ast.Try, tried: Block, branches: list[Branch], last: list[Node]) -> None:
        if not (tried.nodes or last or any(branch.nodes for branch in branches)):
            return
        caught = finally_ = None
        if node.handlers:
            line = node.handlers[0].lineno
            if len(branches) == 1:
                only = branches[0]
                caught = Block(line=line, nodes=only.nodes, label=_except(only.condition), raises=only.raises)
            elif any(branch.nodes for branch in branches):
                caught = Block(line=line, nodes=[If(line=line, branches=branches)], label="except")
            else:
                caught = Block(line=line, label="except")
        if node.finalbody:
            finally_ = Block(line=node.finalbody[0].lineno, nodes=last)
        self.frame.out.append(
            Try(line=node.lineno, try_block=tried, catch_block=caught, finally_block=finally_)
        )


def _except(condition: str | None) -> str:
    return "except" if condition is None else f"except {condition}"


def _assigned(body: Sequence[ast.stmt]) -> set[str]:
    """The names that a block assigns."""
    found = (each for statement in body for each in ast.walk(statement))
    return {each.id for each in found if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
