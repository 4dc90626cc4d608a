"""A graph as a Mermaid flowchart, for Markdown that is rendered (GitHub, GitLab, wikis).

Owns: nodes, edges and subgraphs in Mermaid's words. Does not own the words inside (``outline``). Positions are
Mermaid's: what starts in the same row hangs from the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import Part, parts, whole
from orchestrator.diagrams.render.outline import KINDS, bounds, details, is_loose, laid, rows, standing, title
from orchestrator.diagrams.render.style import LIGHT, LOOKS
from orchestrator.diagrams.tracing import Trace

Edges = list[tuple[str, str]]
"""Where the flow comes from: a node, and what stands on the edge from it."""

MAX_CHARACTERS = 80
_SHAPES = {
    "step_do": ("[", "]"),
    "step_sleep": ("(", ")"),
    "step_sleep_until": ("(", ")"),
    "step_wait_for_event": ("{{", "}}"),
    "step_invoke": ("[[", "]]"),
    "function_call": ("[[", "]]"),
    "break": ("([", "])"),
}
_ENTITIES = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "&": "#amp;", "\\": "#92;"}


def mermaid(graph: Mapping[str, Any], trace: Trace | Mapping[str, Any] | None = None) -> str:
    """The graph as the text of a Mermaid flowchart, ending with a newline. With ``trace`` (or its JSON) each step has
    the colours of its state, and says how often it ran."""
    return _Chart(graph, None if trace is None else laid(trace)).text()


class _Chart:
    def __init__(self, graph: Mapping[str, Any], trace: Mapping[str, Any] | None) -> None:
        self._trace = trace
        self._states: dict[str, list[str]] = {}
        """Nodes of the chart by state."""
        self._lines = ["flowchart TD"]
        self._edges: list[str] = []
        self._number = 0
        self._depth = 1
        self._calls: list[tuple[str, str]] = []
        self._entries: dict[str, str] = {}
        self._graph = graph

    def text(self) -> str:
        sections = whole(self._graph)
        for part in sections:
            if part.id == "main":
                start = self._node(("([", "])"), [part.heading])
                if self._trace is not None:
                    self._states.setdefault(self._trace["start"], []).append(start)
                self._part(part, [(start, "")])
                continue
            name = part.id.removeprefix("fn:")
            self._open(f"function {part.heading}")
            self._entries[name] = self._node(("([", "])"), [part.heading])
            self._part(part, [(self._entries[name], "")])
            self._close()
        for caller, name in self._calls:
            self._edges.append(f"  {caller} -.-> {self._entries[name]}")
        return "\n".join([*self._lines, *self._edges, *self._classes()]) + "\n"

    def _classes(self) -> Iterator[str]:
        """The colours of each state that a node is in."""
        for state, names in self._states.items():
            if state in LOOKS:
                colour, tint = (LIGHT[f"{LOOKS[state][0]}{kind}"] for kind in ("", "-tint"))
                yield f"  classDef {state} fill:{tint},stroke:{colour},color:{LIGHT['text']}"
                yield f"  class {','.join(names)} {state}"

    # -- parts and nodes ----------------------------------------------------------------------------------

    def _part(self, part: Part, before: Edges) -> Edges:
        """Draw the nodes of a part, after ``before``; gives what the flow goes on from."""
        found = rows(part)
        for index, row in enumerate(found):
            begins, _ = bounds(found[index + 1][0][1]) if index + 1 < len(found) else (None, None)
            tied: Edges = []
            loose: Edges = []
            for path, node in row:
                after = self._any(path, node, before)
                (loose if is_loose(node, begins) else tied).extend(after)
            before = tied or loose
        return before

    def _any(self, path: str, node: Json, before: Edges) -> Edges:
        kind = node["type"]
        inner = parts(path, node)
        if kind in ("if", "switch"):
            return self._choice(node, inner, before)
        if kind == "try":
            return self._try(inner, before)
        if kind in ("loop", "parallel", "block") and node["nodes"]:
            self._open(title(node))
            after = self._part(inner[0], before)
            self._close()
            return after
        return self._leaf(path, node, before)

    def _leaf(self, path: str, node: Json, before: Edges) -> Edges:
        kind = node["type"]
        words = [" ".join(filter(None, (KINDS.get(kind, ""), title(node)))), *details(node)]
        ran = None if self._trace is None else self._trace["nodes"].get(path)
        words += [] if ran is None else [standing(ran)]
        drawn = self._node(_SHAPES.get(kind, (">", "]")), words)
        if ran is not None:
            self._states.setdefault(ran["state"], []).append(drawn)
        self._connect(before, drawn)
        if kind == "function_call":
            self._calls.append((drawn, node["name"]))
        return [] if kind == "break" else [(drawn, "")]

    def _choice(self, node: Json, inner: Sequence[Part], before: Edges) -> Edges:
        words = title(node) if node["type"] == "switch" else inner[0].heading
        drawn = self._node(("{", "}"), [words])
        self._connect(before, drawn)
        after: Edges = []
        exhaustive = any(branch["condition"] is None for branch in node["branches"])
        for index, part in enumerate(inner):
            is_first = index == 0 and node["type"] == "if"
            after += self._part(part, [(drawn, "yes" if is_first else part.heading)])
        return (
            after
            if exhaustive
            else [*after, (drawn, "no" if node["type"] == "if" and len(inner) == 1 else "else")]
        )

    def _try(self, inner: Sequence[Part], before: Edges) -> Edges:
        """The first part, what catches its errors, what comes last."""
        last = inner[-1] if inner[-1].heading == "finally" else None
        catching = [part for part in inner[1:] if part is not last]
        self._open("try")
        entry = self._node(("((", "))"), [" "])
        self._connect(before, entry)
        after = self._part(inner[0], [(entry, "")])
        self._close()
        for part in catching:
            after += self._part(part, [(entry, part.heading)])
        if last is None or not last.nodes:
            return after
        self._open("finally")
        after = self._part(last, after or [(entry, "")])
        self._close()
        return after

    # -- lines --------------------------------------------------------------------------------------------

    def _node(self, shape: tuple[str, str], words: Iterable[str]) -> str:
        self._number += 1
        name = f"n{self._number}"
        self._line(f'{name}{shape[0]}"{"<br/>".join(map(_text, words))}"{shape[1]}')
        return name

    def _connect(self, before: Edges, name: str) -> None:
        for origin, words in before:
            label = f'|"{_text(words)}"|' if words else ""
            self._edges.append(f"  {origin} -->{label} {name}")

    def _open(self, words: str) -> None:
        self._number += 1
        self._line(f'subgraph s{self._number}["{_text(words)}"]')
        self._depth += 1

    def _close(self) -> None:
        self._depth -= 1
        self._line("end")

    def _line(self, text: str) -> None:
        self._lines.append("  " * self._depth + text)


def _text(words: str) -> str:
    """Text inside double quotes."""
    words = words if len(words) <= MAX_CHARACTERS else words[: MAX_CHARACTERS - 1] + "…"
    return "".join(_ENTITIES.get(each, each if each.isprintable() else " ") for each in words)
