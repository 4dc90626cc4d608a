"""``starts`` and ``resolves``: which nodes of a function run beside which.

Owns: the numbering. Does not own the nodes (``nodes``), nor what starts and awaits them (``parsing``).

Each function counts for itself, from 1. A node that starts while others are unresolved, or that is not awaited at
once, starts in the current row. An await resolves what it waits for in the next row, which then is the current one.

A decorated step starts after what it needs, in the row in which that is resolved; the code does not wait there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from orchestrator.diagrams.nodes import Node


class Order:
    """The rows of one function, at one point of a walk through it."""

    def __init__(self) -> None:
        self.current = 1
        self.started = 0
        """How many nodes have started so far."""
        self._open: dict[Hashable, Node] = {}
        self._serial: dict[Hashable, int] = {}
        self._chains: dict[Hashable, Mapping[Hashable, bool]] = {}

    @property
    def unresolved(self) -> bool:
        return bool(self._open)

    def is_fresh(self, handle: Hashable, started: int) -> bool:
        """Whether a node started after ``started`` others, and was the last to start."""
        return started < self._serial.get(handle, 0) == self.started

    def start(
        self,
        handle: Hashable,
        node: Node,
        after: Iterable[Hashable] = (),
        chain: Mapping[Any, bool] | None = None,
    ) -> None:
        """``node`` starts; ``handle`` is what stands for it until it is awaited.

        It starts when those in ``after`` have ended. ``chain``: what was started for it alone, and whether together
        with others; who awaits it awaits that too.
        """
        node.starts = self.current
        for needed in (self._open[each] for each in after if each in self._open):
            needed.resolves = needed.resolves or (needed.starts or 0) + 1
            node.starts = max(node.starts, needed.resolves)
        if chain:
            self._chains[handle] = chain
        self.started += 1
        self._serial[handle] = self.started
        self._open[handle] = node

    def passed(self, handle: Hashable) -> None:
        """A node was awaited where it was called: without a number, if nothing else is unresolved."""
        chain = self._chains.get(handle, {})
        if not self._open.keys() <= {handle, *chain}:
            self.resolve([handle])
            return
        for each in (handle, *chain):
            node = self._open.pop(each, None)
            if node is not None and chain.get(each):
                self.current = max(self.current, node.resolves or 0)
            elif node is not None:
                node.starts = node.resolves = None

    def resolve(self, handles: Iterable[Hashable]) -> None:
        """One await waits for all of these; those that are resolved already do not count."""
        chained = [each for handle in handles for each in (*self._chains.get(handle, ()), handle)]
        nodes = [self._open.pop(handle) for handle in dict.fromkeys(chained) if handle in self._open]
        if nodes:
            self.current = max(self.current, *((node.starts or 0) + 1 for node in nodes))
        for node in nodes:
            if node.resolves is None:  # else: by another branch
                node.resolves = self.current

    def drop(self, handle: Hashable) -> None:
        """A node was cancelled: nobody waits for it any more."""
        for each in (handle, *self._chains.get(handle, ())):
            self._open.pop(each, None)

    def fork(self) -> Order:
        """The same point, for one of several branches."""
        copy = Order()
        copy.current, copy.started = self.current, self.started
        copy._open, copy._serial, copy._chains = dict(self._open), dict(self._serial), dict(self._chains)
        return copy

    def join(self, others: Iterable[Order]) -> None:
        """Go on after branches, of which this is one: what any left unresolved is unresolved."""
        for other in others:
            self.current = max(self.current, other.current)
            self.started = max(self.started, other.started)
            self._chains |= other._chains
            for handle, node in other._open.items():
                self._open.setdefault(handle, node)
