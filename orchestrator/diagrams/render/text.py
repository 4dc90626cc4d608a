"""A graph as text, for a terminal.

Owns: the tree of lines. Does not own the words (``outline``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import MAIN, Part, parts, whole
from orchestrator.diagrams.render.outline import KINDS, MARKS, details, laid, span, standing, title
from orchestrator.diagrams.tracing import Trace


def text(graph: Mapping[str, Any], trace: Trace | Mapping[str, Any] | None = None) -> str:
    """The graph as a tree of lines, ending with a newline. ``[1→2]``: starts in row 1, resolved by row 2.

    With ``trace`` (or its JSON) each step has a mark for its state, and says it where it is more than done once.
    """
    return "\n".join(_Tree(None if trace is None else laid(trace)["nodes"]).sections(graph))


@dataclass
class _Entry:
    """A line, and the lines under it."""

    line: str
    below: list[_Entry]


class _Tree:
    """The lines of one graph; ``ran`` by node, where there is a trace."""

    def __init__(self, ran: Mapping[str, Any] | None) -> None:
        self._ran = ran

    def sections(self, graph: Mapping[str, Any]) -> Iterator[str]:
        for part in whole(graph):
            head = f"workflow {part.heading}" if part.id == MAIN else f"function {part.heading}"
            entries = self._entries(part) or [_Entry("(no steps)", [])]
            yield "\n".join([head, *_lines(entries)]) + "\n"

    def _entries(self, part: Part) -> list[_Entry]:
        found: list[_Entry] = []
        for path, node in part.children():
            inner = parts(path, node)
            if node["type"] in ("if", "try"):  # their parts stand one below the other, as in the code
                found += [_Entry(each.heading, self._entries(each)) for each in inner]
            elif any(each.heading for each in inner):
                found.append(
                    _Entry(
                        self._line(path, node), [_Entry(each.heading, self._entries(each)) for each in inner]
                    )
                )
            else:
                below = [entry for each in inner for entry in self._entries(each)]
                found.append(_Entry(self._line(path, node), below))
        return found

    def _line(self, path: str, node: Json) -> str:
        kind = KINDS.get(node["type"], "")
        if node["type"] == "function_call":
            words = [f"{kind} {title(node)}"]
        elif kind:
            words = [f'{kind} "{title(node)}"']
        else:
            words = [f"! {title(node)}" if node.get("marked") else title(node)]
        if span(node):
            words.append(f"[{span(node)}]")
        if more := details(node):
            words.append(", ".join(more))
        if self._ran is None or not kind:
            return "  ".join(words)
        ran = self._ran.get(path, _NOTHING)
        if ran["total"] > 1 or ran["state"] not in ("pending", "done"):
            words.append(f"({standing(ran)})")
        return f"{MARKS[ran['state']]} {'  '.join(words)}"


_NOTHING = {"state": "pending", "total": 0, "counts": {}}


def _lines(entries: list[_Entry], margin: str = "") -> Iterator[str]:
    for index, entry in enumerate(entries):
        last = index == len(entries) - 1
        yield f"{margin}{'└─' if last else '├─'} {entry.line}"
        yield from _lines(entry.below, margin + ("   " if last else "│  "))
