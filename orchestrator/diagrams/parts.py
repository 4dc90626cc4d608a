"""The parts that a node falls into, and the ids of both.

Owns: ids that stay the same while the code does, for pictures and traces alike. Does not own any words but the heading
of a part, nor any picture (``render``).

The parts of a graph are ``main`` and ``fn:<name>`` for each function. A node's id is that of the part it stands in and
its place there, counted from 0: ``main.2``. A part's id is that of its node and its number: ``main.2.1`` is the second
branch of that node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.diagrams.nodes import Json

MAIN, FUNCTION = "main", "fn:"
"""The id of the workflow's own part; what the id of a function begins with, before its name."""


@dataclass(frozen=True)
class Part:
    """Some of the nodes in a node, in order. ``id`` is unique in the graph; the ids of its nodes begin with it."""

    id: str
    heading: str
    nodes: Sequence[Json]

    def children(self) -> Iterator[tuple[str, Json]]:
        """Each node with its id."""
        for index, node in enumerate(self.nodes):
            yield f"{self.id}.{index}", node


def whole(graph: Mapping[str, Any]) -> list[Part]:
    """The workflow itself, and each function it calls."""
    start = graph["workflow"]
    parts = [Part(MAIN, start["class_name"], start["nodes"])]
    return parts + [
        Part(f"{FUNCTION}{name}", name, each["nodes"]) for name, each in start["functions"].items()
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and what stands around it: frames and parts, outermost first."""

    node: str
    document: Json
    frames: tuple[str, ...]
    parts: tuple[str, ...]


def places(graph: Mapping[str, Any]) -> Iterator[Place]:
    """Every node of a graph, in order, a frame before what is in it."""
    waiting = [
        Place(node, document, (), (part.id,)) for part in whole(graph) for node, document in part.children()
    ][::-1]
    while waiting:
        place = waiting.pop()
        yield place
        frames = (*place.frames, place.node)
        inside = [
            Place(node, document, frames, (*place.parts, part.id))
            for part in parts(place.node, place.document)
            for node, document in part.children()
        ]
        waiting += inside[::-1]


def parts(path: str, node: Json) -> list[Part]:
    """What a node is a frame around; empty for a node that is none."""
    match node["type"]:
        case "if" | "switch":
            return [
                Part(f"{path}.{n}", _branch(node, n), _flow(node, each))
                for n, each in enumerate(node["branches"])
            ]
        case "try":
            return _clauses(path, node)
        case "loop" | "block" | "parallel":
            return [Part(f"{path}.0", "", _flow(node, node))]
        case "step_do" if node["nodes"]:
            return [Part(f"{path}.0", "its body starts steps, which fails", node["nodes"])]
    return []


def _flow(node: Json, part: Json) -> list[Json]:
    """The nodes of a part; the error at its end stands there like one."""
    return (
        [*part["nodes"], {"type": "break", "kind": "raise", "line": node["line"]}]
        if part.get("raises")
        else part["nodes"]
    )


def _clauses(path: str, node: Json) -> list[Part]:
    """``try``, one part for each ``except``, ``finally``."""
    found = [Part(f"{path}.0", "try", _flow(node, node["try_block"]))]
    caught, last = node["catch_block"], node["finally_block"]
    if caught is not None and caught.get("label") == "except" and _is_choice(caught["nodes"]):
        for index, branch in enumerate(caught["nodes"][0]["branches"]):
            words = "except" if branch["condition"] is None else f"except {branch['condition']}"
            found.append(Part(f"{path}.1.0.{index}", words, _flow(node, branch)))
    elif caught is not None:
        found.append(Part(f"{path}.1", caught.get("label", "except"), _flow(node, caught)))
    return found if last is None else [*found, Part(f"{path}.2", "finally", last["nodes"])]


def _is_choice(nodes: Sequence[Json]) -> bool:
    return len(nodes) == 1 and nodes[0]["type"] == "if"


def _branch(node: Json, index: int) -> str:
    condition = node["branches"][index]["condition"]
    if node["type"] == "switch":
        return "case _" if condition is None else f"case {condition}"
    return "else" if condition is None else f"if {condition}" if index == 0 else f"elif {condition}"
