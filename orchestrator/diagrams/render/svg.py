"""A graph as an SVG: one self-contained picture, light or dark as its reader prefers.

Owns: the elements. Does not own positions (``layout``), colours (``style``) or the script (``script``).

For whoever lays a live trace over it: every node is an element with ``data-node`` (the same as long as the code
is), ``data-type``, ``data-line`` and, for steps, ``data-step`` with the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.render.layout import (
    GAP_X,
    HEAD,
    INSET,
    LARGE,
    LINE,
    PAD,
    SMALL,
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
from orchestrator.diagrams.render.outline import KINDS, details, span, title
from orchestrator.diagrams.render.script import SCRIPT
from orchestrator.diagrams.render.style import STYLE

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML does not have."""


def svg(graph: Mapping[str, Any]) -> str:
    """The graph as the text of an SVG document, which also stands inside HTML as it is."""
    found, width, height = sections(graph)
    name = graph["workflow"]["class_name"]
    steps = len(list(steps_of(graph)))
    about = f"{steps} step{'' if steps == 1 else 's'}"
    functions = len(found) - 1
    about += f", {functions} function{'' if functions == 1 else 's'}" if functions else ""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="orchestrator-diagram" role="graphics-document" '
            f'aria-roledescription="workflow diagram" aria-label={_quoted(f"Workflow {name}: {about}")} '
            f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">',
            f"<title>{_text(f'Workflow {name}')}</title>",
            f"<desc>{_text(f'What the workflow {name} may do: {about}. Frames can be collapsed.')}</desc>",
            f"<style>{STYLE}</style>",
            *(line for section in found for line in _section(section)),
            f"<script><![CDATA[{SCRIPT}]]></script>",
            "</svg>",
            "",
        ]
    )


def _section(section: Section) -> Iterator[str]:
    part = section.column.part
    inner = section.width - 2 * PAD
    yield (
        f'<g class="section" id={_quoted(anchor(part.id))} data-part={_quoted(part.id)} '
        f'data-least="{text_width(section.heading, LARGE) + 2 * PAD:g}" '
        f'transform="translate({section.x:g},{section.y:g})">'
    )
    yield f'<rect class="outline" width="{section.width:g}" height="{section.height:g}" rx="10"/>'
    yield f'<text class="large strong" x="{PAD}" y="{HEAD - 8}">{_text(section.heading)}</text>'
    yield from _column(section.column, PAD + (inner - section.column.width) / 2, HEAD + PAD)
    yield "</g>"


def _column(column: Column, x: float, y: float) -> Iterator[str]:
    least = max(text_width(column.heading, SMALL), 60.0 if column.heading else 0)
    heading = ' data-heading="1"' if column.heading else ""
    yield (
        f'<g class="column" data-part={_quoted(column.part.id)} data-least="{least:g}"{heading} '
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
            yield from _box(box, left, top)
        yield "</g>"
    if not column.rows:
        yield f'<text class="muted" text-anchor="middle" x="{column.width / 2:g}" y="{column.height - 4:g}">–</text>'
    yield "</g>"


def _box(box: Box, x: float, y: float) -> Iterator[str]:
    yield from _frame(box, x, y) if isinstance(box, Frame) else _leaf(box, x, y)


def _frame(frame: Frame, x: float, y: float) -> Iterator[str]:
    least = text_width(frame.heading, LARGE) + text_width(frame.count, SMALL) + 3 * INSET + 2 * PAD
    marked = " marked" if frame.node.get("marked") else ""
    kind = frame.node["type"]
    yield (
        f'<g class="box frame {kind}{marked}" {_data(frame.path, frame.node)}{_loose(frame.loose)} '
        f'data-least="{least:g}" transform="translate({x:g},{y:g})">'
    )
    yield f'<rect class="outline" width="{frame.width:g}" height="{frame.height:g}" rx="8"/>'
    label = ", ".join(filter(None, (frame_title(frame.node), frame.count)))
    yield f'<g class="head" tabindex="0" role="button" aria-expanded="true" aria-label={_quoted(label)}>'
    yield f"<title>{_text(frame_title(frame.node))}</title>"
    yield f'<rect width="{frame.width:g}" height="{HEAD}" rx="8"/>'
    yield f'<g transform="translate({PAD + 2},{HEAD / 2:g})"><path d="M-4.5,-2.5h9l-4.5,6z"/></g>'
    yield f'<text class="large" x="{PAD + 14}" y="{HEAD - 10}">{_text(frame.heading)}</text>'
    yield (
        f'<text class="count muted" text-anchor="end" x="{frame.width - PAD:g}" y="{HEAD - 11}">'
        f"{_text(frame.count)}</text></g>"
    )
    yield '<g class="body">'
    for index, (column, offset) in enumerate(zip(frame.columns, frame.offsets, strict=True)):
        yield from _column(column, offset, HEAD + PAD)
        if index + 1 < len(frame.columns):
            at = offset + column.width + GAP_X / 2
            yield (
                f'<line class="split" x1="{at:g}" x2="{at:g}" y1="{HEAD + PAD / 2:g}" '
                f'y2="{frame.height - PAD / 2:g}"/>'
            )
    yield "</g></g>"


def _leaf(leaf: Leaf, x: float, y: float) -> Iterator[str]:
    node = leaf.node
    marked = " marked" if node.get("marked") else ""
    label = f"{KINDS.get(node['type'], node['type'])} {title(node)}"
    extra = [*details(node), *([f"row {span(node)}"] if span(node) else [])]
    full = ", ".join([label, *extra, f"line {node['line']}"])
    yield (
        f'<g class="box leaf {node["type"]}{marked}" {_data(leaf.path, node)}{_loose(leaf.loose)} '
        f'role="graphics-symbol" aria-label={_quoted(full)} data-w="{leaf.width:g}" data-h="{leaf.height:g}" '
        f'transform="translate({x:g},{y:g})">'
    )
    yield f"<title>{_text(full)}</title>"
    is_link = node["type"] == "function_call"
    if is_link:
        yield f"<a href={_quoted('#' + anchor('fn:' + node['name']))}>"
    radius = leaf.height / 2 if node["type"] == "break" else 6
    yield f'<rect width="{leaf.width:g}" height="{leaf.height:g}" rx="{radius:g}"/>'
    kind, name = leaf.words
    head = f'<tspan class="kind">{_text(kind)}</tspan> ' if kind else ""
    yield (
        f'<text x="{INSET / 2:g}" y="{LINE + 3}" xml:space="preserve">{head}'
        f'<tspan class="large strong">{_text(name)}</tspan></text>'
    )
    if leaf.more:
        yield f'<text class="muted" x="{INSET / 2:g}" y="{2 * LINE + 3}">{_text(leaf.more)}</text>'
    yield "</a></g>" if is_link else "</g>"


def anchor(part: str) -> str:
    """The id of a section: what a call of a function points to."""
    return "diagram-" + re.sub(r"[^A-Za-z0-9_.-]", "-", part)


def _data(path: str, node: Json) -> str:
    found = {"node": path, "type": node["type"], "line": str(node["line"])}
    if node["type"].startswith("step_"):
        found["step"] = node["name"]
    return " ".join(f"data-{name}={_quoted(value)}" for name, value in found.items())


def _loose(loose: bool) -> str:
    return ' data-loose="1"' if loose else ""


def _text(value: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", value))


def _quoted(value: str) -> str:
    return quoteattr(_FORBIDDEN.sub("\ufffd", value))
