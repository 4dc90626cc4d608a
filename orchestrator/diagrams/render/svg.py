"""A graph as an SVG: one self-contained picture, light or dark as its reader prefers, with or without a trace.

Owns: the elements. Does not own positions (``layout``), colours (``style``), the script (``script``), or what the
states are (``tracing``).

For whoever lays a live trace over it: every node is a ``<g>`` with

- ``id="node-<id>"``, ``data-node`` (its id, the same as long as the code is), ``data-type`` and ``data-line``; steps
  have ``data-step`` with their name; the two ends are the nodes ``start`` and ``end``,
- ``data-state``, from which the style sheet makes border, tint and mark: to change it is all that a live page must do,
- steps, calls and ends: ``tabindex="0" role="button"``; frames have such a head, which collapses them,
- ``data-label``: what ``aria-label`` and ``<title>`` say before the state is added,
- in ``.badge``, how many ran, where that is more than one (its ``data-total``).

A column of nodes (``data-part``) in which something ran has ``data-entered``. The whole has ``data-traced`` once there
is a trace. ``orchestratorDiagram.apply(svg, trace)`` of the script does all of this in the browser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import FUNCTION
from orchestrator.diagrams.render.layout import (
    BADGE,
    END,
    GAP_X,
    HEAD,
    INSET,
    LARGE,
    LINE,
    MARK,
    PAD,
    SMALL,
    START,
    Box,
    Column,
    Frame,
    Leaf,
    Section,
    frame_title,
    sections,
    steps_of,
    text_width,
    wires,
)
from orchestrator.diagrams.render.outline import KINDS, amount, details, laid, span, standing, title
from orchestrator.diagrams.render.script import SCRIPT
from orchestrator.diagrams.render.style import STYLE
from orchestrator.diagrams.tracing import Trace

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML does not have."""

PENDING = "pending"
UNDO = "M-2,-5L-6,-1.5L-2,2M-6,-1.5H2a3.2,3.2 0 0 1 0,6.4H-2"
"""The mark of a step that has a rollback handler."""
_GLYPHS = {
    "ok": "M-3.5,0l2.5,3l4.5,-6",
    "no": "M-3,-3l6,6M3,-3l-6,6",
    "bar": "M-4,0h8",
    "play": "M-2,-3.5l5,3.5l-5,3.5z",
    "dots": "M-4,0h.01M0,0h.01M4,0h.01",
    "turn": "M3.4,-1.6A3.8,3.8 0 1 0 3.6,1.4M3.9,-4.4v3h-3",
    "back": "M-1.4,-4L-4.2,-1.4L-1.4,1.2M-4.2,-1.4H1.6a2.5,2.5 0 0 1 0,5H-1.2",
}
"""What stands in the mark of a state; the style sheet shows one of them."""
GLYPHS = (
    f'<g class="mark" aria-hidden="true"><circle r="{MARK}"/>'
    + "".join(f'<path class="{name}" d="{path}"/>' for name, path in _GLYPHS.items())
    + "</g>"
)


def svg(
    graph: Mapping[str, Any], trace: Trace | Mapping[str, Any] | None = None, *, bare: bool = False
) -> str:
    """The graph as the text of an SVG document, which also stands inside HTML as it is.

    ``trace`` (or its JSON) is laid over it. ``bare`` leaves out style sheet and script, for pages that serve
    ``style.STYLE`` and ``script.SCRIPT`` as files of their own.
    """
    return "\n".join(_Picture(graph, trace).lines(bare))


class _Picture:
    """One picture: a graph, and perhaps a trace."""

    def __init__(self, graph: Mapping[str, Any], trace: Trace | Mapping[str, Any] | None) -> None:
        self._graph = graph
        self._is_traced = trace is not None
        found = laid(trace)
        self._entered = frozenset(found["entered"])
        self._ran: Mapping[str, Any] = found["nodes"]
        self._ends = {START: found["start"], END: found["end"]}

    def lines(self, bare: bool) -> Iterator[str]:
        found, width, height = sections(self._graph)
        name = self._graph["workflow"]["class_name"]
        steps = len(list(steps_of(self._graph)))
        about = f"{steps} step{'' if steps == 1 else 's'}"
        functions = len(found) - 1
        about += f", {functions} function{'' if functions == 1 else 's'}" if functions else ""
        traced = ' data-traced="1"' if self._is_traced else ""
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="orchestrator-diagram"{traced} role="graphics-document" '
            f'aria-roledescription="workflow diagram" aria-label={_quoted(f"Workflow {name}: {about}")} '
            f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
        )
        yield f"<title>{_text(f'Workflow {name}')}</title>"
        yield f"<desc>{_text(f'What the workflow {name} may do: {about}. Frames can be collapsed.')}</desc>"
        if not bare:
            yield f"<style>{STYLE}</style>"
        for section in found:
            yield from self._section(section)
        if not bare:
            yield f"<script><![CDATA[{SCRIPT}]]></script>"
        yield "</svg>"
        yield ""

    # -- what stands in what ------------------------------------------------------------------------------

    def _section(self, section: Section) -> Iterator[str]:
        part = section.column.part
        inner = section.width - 2 * PAD
        yield (
            f'<g class="section" id={_quoted(anchor(part.id))} data-section={_quoted(part.id)} '
            f'data-least="{text_width(section.heading, LARGE) + 2 * PAD:g}" '
            f'transform="translate({section.x:g},{section.y:g})">'
        )
        yield f'<rect class="outline" width="{section.width:g}" height="{section.height:g}" rx="10"/>'
        yield f'<text class="large strong" x="{PAD}" y="{HEAD - 8}">{_text(section.heading)}</text>'
        yield from self._column(section.column, PAD + (inner - section.column.width) / 2, HEAD + PAD)
        yield "</g>"

    def _column(self, column: Column, x: float, y: float) -> Iterator[str]:
        least = max(text_width(column.heading, SMALL), 60.0 if column.heading else 0)
        more = ' data-heading="1"' if column.heading else ""
        more += ' data-entered="1"' if column.part.id in self._entered else ""
        yield (
            f'<g class="column" data-part={_quoted(column.part.id)} data-least="{least:g}"{more} '
            f'transform="translate({x:g},{y:g})">'
        )
        if column.heading:
            full = f"<title>{_text(column.part.heading)}</title>"
            yield (
                f'<text class="heading muted" text-anchor="middle" x="{column.width / 2:g}" y="13">'
                f"{_text(column.heading)}{full}</text>"
            )
        for line, tip in wires(column):
            yield f'<path class="wire" d="{line}"/>'
            yield f'<path class="tip" d="{tip}"/>'
        for boxes, places in zip(column.rows, column.places, strict=True):
            yield '<g class="row">'
            for box, (left, top) in zip(boxes, places, strict=True):
                yield from (
                    self._frame(box, left, top) if isinstance(box, Frame) else self._leaf(box, left, top)
                )
            yield "</g>"
        if not column.rows:
            middle, bottom = column.width / 2, column.height - 4
            yield f'<text class="muted" text-anchor="middle" x="{middle:g}" y="{bottom:g}">–</text>'
        yield "</g>"

    def _frame(self, frame: Frame, x: float, y: float) -> Iterator[str]:
        least = text_width(frame.heading, LARGE) + text_width(frame.count, SMALL) + 3 * INSET + 2 * PAD
        label = ", ".join(filter(None, (frame_title(frame.node), frame.count)))
        yield (
            f'<g class="box frame {_kind(frame.node)}" {self._data(frame, label)} '
            f'data-least="{least:g}" transform="translate({x:g},{y:g})">'
        )
        yield f'<rect class="outline" width="{frame.width:g}" height="{frame.height:g}" rx="8"/>'
        full = self._full(frame, label)
        yield f'<g class="head" tabindex="0" role="button" aria-expanded="true" aria-label={_quoted(full)}>'
        yield f"<title>{_text(full)}</title>"
        yield f'<rect width="{frame.width:g}" height="{HEAD}" rx="8"/>'
        yield f'<g transform="translate({PAD + 2},{HEAD / 2:g})"><path d="M-4.5,-2.5h9l-4.5,6z"/></g>'
        yield f'<text class="large" x="{PAD + 14}" y="{HEAD - 10}">{_text(frame.heading)}</text>'
        yield (
            f'<text class="count muted" text-anchor="end" x="{frame.width - PAD:g}" y="{HEAD - 11}">'
            f"{_text(frame.count)}</text></g>"
        )
        yield '<g class="body">'
        for index, (column, offset) in enumerate(zip(frame.columns, frame.offsets, strict=True)):
            yield from self._column(column, offset, HEAD + PAD)
            if index + 1 < len(frame.columns):
                at = offset + column.width + GAP_X / 2
                yield (
                    f'<line class="split" x1="{at:g}" x2="{at:g}" y1="{HEAD + PAD / 2:g}" '
                    f'y2="{frame.height - PAD / 2:g}"/>'
                )
        yield f"</g>{GLYPHS}</g>"

    def _leaf(self, leaf: Leaf, x: float, y: float) -> Iterator[str]:
        node = leaf.node
        extra = [*details(node), *([f"row {span(node)}"] if span(node) else [])]
        label = ", ".join(
            [f"{KINDS.get(node['type'], '')} {title(node)}".strip(), *extra, f"line {node['line']}"]
        )
        full = self._full(leaf, label)
        said = f"aria-label={_quoted(full)}"
        is_link, is_step = node["type"] == "function_call", node["type"] in KINDS or leaf.path in (START, END)
        role = f'tabindex="0" role="button" {said} ' if is_step else f'role="graphics-symbol" {said} '
        role = "" if is_link else role  # the link in it is what has the focus
        yield (
            f'<g class="box leaf {_kind(node)}" {self._data(leaf, label)} {role}'
            f'data-w="{leaf.width:g}" data-h="{leaf.height:g}" transform="translate({x:g},{y:g})">'
        )
        yield f"<title>{_text(full)}</title>"
        if is_link:
            yield f"<a href={_quoted('#' + anchor(FUNCTION + node['name']))} {said}>"
        yield from _face(leaf)
        if is_link:
            yield "</a>"
        if is_step:
            yield self._badge(leaf) + GLYPHS
        yield "</g>"

    # -- what a trace adds --------------------------------------------------------------------------------

    def _state(self, path: str) -> str:
        return str(self._ends.get(path) or self._ran.get(path, {}).get("state", PENDING))

    def _full(self, box: Box, label: str) -> str:
        """What a node is, and how it stands."""
        if not self._is_traced or box.node["type"] == "break":
            return label
        ran = self._ran.get(box.path)
        state = self._state(box.path).replace("_", " ")
        return f"{label}: {state if ran is None else standing(ran)}"

    def _badge(self, leaf: Leaf) -> str:
        """How many ran: at the right upper corner, hidden by the style sheet where it is one or none."""
        ran = self._ran.get(leaf.path, {"total": 0, "counts": {}})
        said = amount(ran)
        width = BADGE + len(said) * SMALL
        return (
            f'<g class="badge" data-total="{ran["total"]}" transform="translate({leaf.width + MARK:g},0)">'
            f'<rect x="{-width:g}" y="-8" width="{width:g}" height="16" rx="8"/>'
            f'<text text-anchor="middle" x="{-width / 2:g}" y="4">{said}</text></g>'
        )

    def _data(self, box: Box, label: str) -> str:
        node = box.node
        found = {"node": box.path, "type": node["type"], "line": str(node["line"])}
        if node["type"].startswith("step_"):
            found["step"] = node["name"]
        if node["type"] != "break":
            found |= {"state": self._state(box.path), "label": label}
        found |= {"loose": "1"} if box.loose else {}
        inside = " ".join(f"data-{name}={_quoted(value)}" for name, value in found.items())
        return f"id={_quoted('node-' + box.path)} {inside}"


def anchor(part: str) -> str:
    """The id of a section: what a call of a function points to."""
    return "diagram-" + re.sub(r"[^A-Za-z0-9_.-]", "-", part)


def _face(leaf: Leaf) -> Iterator[str]:
    """What stands on a box."""
    is_round = leaf.node["type"] in (START, END, "break")
    radius, kind, name = leaf.height / 2 if is_round else 6, *leaf.words
    place = f'x="{leaf.width / 2:g}" text-anchor="middle"' if is_round else f'x="{INSET / 2:g}"'
    first = f'<tspan class="kind">{_text(kind)}</tspan> ' if kind else ""
    yield f'<rect class="face" width="{leaf.width:g}" height="{leaf.height:g}" rx="{radius:g}"/>'
    yield (
        f'<text {place} y="{LINE + 3}" xml:space="preserve">{first}'
        f'<tspan class="large strong">{_text(name)}</tspan></text>'
    )
    if leaf.more:
        yield f'<text class="muted" x="{INSET / 2:g}" y="{2 * LINE + 3}">{_text(leaf.more)}</text>'
    if leaf.node.get("rollback"):
        at = leaf.width - INSET / 2 - 6
        yield f'<path class="undo" d="{UNDO}" transform="translate({at:g},{LINE - 2:g})"/>'


def _kind(node: Json) -> str:
    return f"{node['type']} marked" if node.get("marked") else str(node["type"])


def _text(value: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", value))


def _quoted(value: str) -> str:
    return quoteattr(_FORBIDDEN.sub("\ufffd", value))
