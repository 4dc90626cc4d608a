"""Drawing what starts, and noting what awaits it.

Owns: putting nodes into the frame, starting coroutines, what an ``await`` resolves, and branches. Does not own the
numbers (``ordering``) or which calls start something (``calls``).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from orchestrator.diagrams.flow import Flow, matters
from orchestrator.diagrams.nodes import Block, Branch, FunctionCall, Loop, Node
from orchestrator.diagrams.parsing.atoms import UNKNOWN, Coroutine, Handle, Joined, Value
from orchestrator.diagrams.parsing.project import FunctionInfo, Project
from orchestrator.diagrams.parsing.scopes import Scopes
from orchestrator.diagrams.parsing.values import joined, ordered, without_awaitables

Place = tuple[int, ...]


def place_of(node: ast.AST) -> Place:
    """Where a node stands in its file."""
    return (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))


class Awaiting(Scopes):
    """Draws into the frame of the function that is walked through."""

    def __init__(self, project: Project) -> None:
        super().__init__(project)
        self.walking: list[FunctionInfo] = []
        """The functions that are being walked through, outermost first."""
        self.made: set[Coroutine] = set()
        self.begun: set[tuple[int, Place]] = set()
        """Coroutines that something was seen to start, by function and place."""

    @contextmanager
    def collecting(self) -> Iterator[list[Node]]:
        """Draw into a list of its own."""
        outer, inner = self.frame.out, list[Node]()
        self.frame.out = inner
        try:
            yield inner
        finally:
            self.frame.out = outer

    @contextmanager
    def peeking(self) -> Iterator[list[Node]]:
        """Look at what would be drawn, without drawing it."""
        before, self.frame.state = self.frame.state, self.frame.state.fork()
        try:
            with self.collecting() as nodes:
                yield nodes
        finally:
            self.frame.state = before

    def glance(self, node: ast.expr) -> Value:
        with self.peeking():
            return self.value(node)

    @contextmanager
    def looping(self, line: int, label: str) -> Iterator[None]:
        """Draw a loop around what is drawn meanwhile."""
        self.frame.loops.append((line, label))
        try:
            with self.collecting() as nodes:
                yield
        finally:
            self.frame.loops.pop()
        if matters(nodes):
            self.frame.out.append(Loop(line=line, nodes=nodes, label=label))

    def begin(
        self,
        node: Node,
        place: Place,
        after: Iterable[Handle] = (),
        chain: Mapping[Handle, bool] | None = None,
    ) -> Handle:
        """A node starts here and is not awaited yet; ``after`` and ``chain`` are those of ``Order.start``."""
        handle = Handle(self.frame.info.number, place)
        self.frame.state.order.start(handle, node, after, chain)
        self.frame.out.append(node)
        return handle

    def start(self, value: Value, site: ast.AST) -> Value:
        """Start every coroutine in a value; gives it with futures in their place."""
        handles: list[Handle] = [atom for atom in ordered(value) if isinstance(atom, Handle)]
        handles += [self._start(atom, site) for atom in list(ordered(value)) if isinstance(atom, Coroutine)]
        return frozenset(handles)

    def _start(self, coroutine: Coroutine, site: ast.AST) -> Handle:
        self.begun.add((coroutine.function, coroutine.place))
        callee = self.project.functions[coroutine.callee]
        node = FunctionCall(
            line=coroutine.place[0], function=coroutine.callee, recursive=callee in self.walking
        )
        handle = Handle(self.frame.info.number, (*coroutine.place, *place_of(site)))
        self.frame.state.order.start(handle, node)
        drawn: Node = node
        shared = 0
        while shared < len(coroutine.loops) and coroutine.loops[: shared + 1] == tuple(
            self.frame.loops[: shared + 1]
        ):
            shared += 1
        for line, label in reversed(coroutine.loops[shared:]):
            drawn = Loop(line=line, nodes=[drawn], label=label)
        self.frame.out.append(drawn)
        return handle

    def settle(self, value: Value, site: ast.AST, fresh: int) -> Value:
        """Await a value: start what has not started, resolve it; gives what the await gives.

        ``fresh``: how many nodes the function had started before the awaited expression was looked at.
        """
        together = any(isinstance(atom, Joined) for atom in value)
        started = [atom for atom in self.start(value, site) if isinstance(atom, Handle)]
        handles = [atom for atom in started if atom.function == self.frame.info.number]
        order = self.frame.state.order
        if len(handles) == 1 and not together and order.is_fresh(handles[0], fresh):
            order.passed(handles[0])
        else:
            order.resolve(handles)
        results = [
            without_awaitables(frozenset(atom for atom in value if not isinstance(atom, (Handle, Joined))))
        ]
        for atom in value:
            if isinstance(atom, Coroutine):
                results.append(without_awaitables(self.project.functions[atom.callee].returns))
            elif isinstance(atom, Joined):
                results.append(atom.contents)
        return joined(results) or UNKNOWN

    def alternatives(
        self, ways: list[tuple[str | None, Callable[[], Flow]]], *, exhaustive: bool
    ) -> tuple[list[Branch], Flow]:
        """Walk several ways of which one is taken; ``exhaustive``: one of these, for sure."""
        entry = self.frame.state
        branches, ends = [], []
        for condition, walk in ways:
            self.frame.state = entry.fork()
            with self.collecting() as nodes:
                flow = walk()
            branches.append(Branch(condition=condition, nodes=nodes, raises=flow is Flow.RAISES))
            ends.append((flow, self.frame.state))
        if not exhaustive:
            ends.append((Flow.FALLS, entry))
        states = [state for flow, state in ends if not flow.ends] or [state for _, state in ends]
        self.frame.state = states[0].join(states[1:])
        return branches, min((flow for flow, _ in ends), key=lambda flow: flow.value)

    def mark(self, site: ast.AST, why: str, nodes: list[Node]) -> None:
        """Draw what could not be understood."""
        self.frame.out.append(Block(line=place_of(site)[0], nodes=nodes, marked=why))
