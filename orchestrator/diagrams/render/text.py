"""A graph as text, for a terminal.

Owns: the tree of lines. Does not own the words (``outline``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import Part, parts, whole
from orchestrator.diagrams.render.outline import KINDS, details, span, title


def text(graph: Mapping[str, Any]) -> str:
    """The graph as a tree of lines, ending with a newline. ``[1→2]``: starts in row 1, resolved by row 2."""
    sections = []
    for part in whole(graph):
        head = f"workflow {part.heading}" if part.id == "main" else f"function {part.heading}"
        entries = _entries(part) or [_Entry("(no steps)", [])]
        sections.append("\n".join([head, *_lines(entries)]) + "\n")
    return "\n".join(sections)


@dataclass
class _Entry:
    """A line, and the lines under it."""

    line: str
    below: list[_Entry]


def _lines(entries: list[_Entry], margin: str = "") -> Iterator[str]:
    for index, entry in enumerate(entries):
        last = index == len(entries) - 1
        yield f"{margin}{'└─' if last else '├─'} {entry.line}"
        yield from _lines(entry.below, margin + ("   " if last else "│  "))


def _entries(part: Part) -> list[_Entry]:
    found: list[_Entry] = []
    for path, node in part.children():
        inner = parts(path, node)
        if node["type"] in ("if", "try"):  # their parts stand one below the other, as in the code
            found += [_Entry(each.heading, _entries(each)) for each in inner]
        elif any(each.heading for each in inner):
            found.append(_Entry(_line(node), [_Entry(each.heading, _entries(each)) for each in inner]))
        else:
            found.append(_Entry(_line(node), [entry for each in inner for entry in _entries(each)]))
    return found


def _line(node: Json) -> str:
    kind = KINDS.get(node["type"], "")
    if node["type"] == "function_call":
        words = [f"{kind} {title(node)}"]
    elif kind:
        words = [f'{kind} "{title(node)}"']
    else:
        words = [f"! {title(node)}" if node.get("marked") else title(node)]
    if span(node):
        words.append(f"[{span(node)}]")
    more = details(node)
    return "  ".join([*words, *([", ".join(more)] if more else [])])
