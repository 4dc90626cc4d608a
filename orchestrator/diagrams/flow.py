"""How blocks end, and what is worth drawing.

Owns: the three ends of a block, and what makes a frame or a function more than its ways out. Does not own the walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from orchestrator.diagrams.nodes import Block, Break, If, Loop, Node, Parallel, Switch, Try


class Flow(Enum):
    """How a block ends: it goes on, leaves the loop it is in, leaves the function, or raises."""

    FALLS = 0
    JUMPS = 1
    LEAVES = 2
    RAISES = 3

    @property
    def ends(self) -> bool:
        """Whether nothing after the block is come to."""
        return self in (Flow.LEAVES, Flow.RAISES)


def matters(nodes: Sequence[Node]) -> bool:
    """Whether a loop around these is worth drawing: not for what only leaves the loop itself."""
    return any(kept(node, leaving=True) for node in nodes)


def reaches(node: Node) -> bool:
    """Whether there is more in it than ways out."""
    return kept(node, leaving=False)


def kept(node: Node, *, leaving: bool) -> bool:
    """Whether a node is, or holds, a step, a call or something marked; with ``leaving`` a ``return`` counts too."""
    if isinstance(node, Break):
        return leaving and node.kind == "return"
    if isinstance(node, Block) and node.marked:
        return True
    inside = list(contained(node))
    if inside or isinstance(node, (If, Switch, Try, Loop, Block, Parallel)):
        return any(kept(each, leaving=leaving) for each in inside)
    return True


def contained(node: Node) -> Iterator[Node]:
    """The nodes directly inside a frame."""
    match node:
        case Loop(nodes=nodes) | Block(nodes=nodes) | Parallel(nodes=nodes):
            yield from nodes
        case If(branches=branches) | Switch(branches=branches):
            for branch in branches:
                yield from branch.nodes
        case Try(try_block=first, catch_block=second, finally_block=third):
            for block in (first, second, third):
                yield from block.nodes if block is not None else ()
