"""``starts`` and ``resolves``: which nodes of a function run beside which.

Owns: the numbering. Does not own the nodes (``nodes``), nor what starts and awaits them (``parsing``).

Each function counts for itself, from 1. A node that starts while others are unresolved, or that is not awaited at
once, starts in the current row. An await resolves what it waits for in the next row, which then is the current one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from orchestrator.diagrams.nodes import Node


class Order:
    """The rows of one function, at one point of a walk through it."""

    def __init__(self) -> None:
        self.current = 1
        self.started = 0
        """How many nodes have started so far."""
        self._open: dict[Hashable, Node] = {}
        self._serial: dict[Hashable, int] = {}

    @property
    def unresolved(self) -> bool:
        return bool(self._open)

    def is_fresh(self, handle: Hashable, started: int) -> bool:
        """Whether a node started after ``started`` others, and was the last to start."""
        return started < self._serial.get(handle, 0) == self.started

    def start(self, handle: Hashable, node: Node) -> None:
        """``node`` starts; ``handle`` is what stands for it until it is awaited."""
        node.starts = self.current
        self.started += 1
        self._serial[handle] = self.started
        self._open[handle] = node

    def passed(self, handle: Hashable) -> None:
        """A node was awaited where it was called: without a number, if nothing else is unresolved."""
        if len(self._open) == 1 and handle in self._open:
            self._open.pop(handle).starts = None
        else:
            self.resolve([handle])

    def resolve(self, handles: Iterable[Hashable]) -> None:
        """One await waits for all of these; those that are resolved already do not count."""
        nodes = [self._open.pop(handle) for handle in dict.fromkeys(handles) if handle in self._open]
        if nodes:
            self.current = max(self.current, *((node.starts or 0) + 1 for node in nodes))
        for node in nodes:
            if node.resolves is None:  # else: by another branch
                node.resolves = self.current

    def drop(self, handle: Hashable) -> None:
        """A node was cancelled: nobody waits for it any more."""
        self._open.pop(handle, None)

    def fork(self) -> Order:
        """The same point, for one of several branches."""
        copy = Order()
        copy.current, copy.started = self.current, self.started
        copy._open, copy._serial = dict(self._open), dict(self._serial)
        return copy

    def join(self, others: Iterable[Order]) -> None:
        """Go on after branches, of which this is one: what any left unresolved is unresolved."""
        for other in others:
            self.current = max(self.current, other.current)
            self.started = max(self.started, other.started)
            for handle, node in other._open.items():
                self._open.setdefault(handle, node)
