"""Where things stand in a picture: nested frames, one row below the other, what runs together side by side.

Owns: sizes and positions, in pixels, and the lines between rows. Does not own how they are drawn (``svg``). The
script in the picture (``script``) does the same sums again when a frame is collapsed: change both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.diagrams.nodes import Json
from orchestrator.diagrams.parts import MAIN, Part, parts, places, whole
from orchestrator.diagrams.render.outline import KINDS, ROLLBACK, bounds, details, is_loose, rows, span, title

GAP_X, GAP_Y, PAD, HEAD, HEADING = 18, 30, 14, 30, 26
"""Between boxes of a row, between rows, inside a frame, of its head, of the heading of a branch."""
SPARE, MARK, BADGE = 20, 8, 10
"""Room for the mark of a rollback; radius of the mark of a state; left and right of the number in a badge."""
SECTION_GAP, MAX_WIDTH, MARGIN = 40, 1400, 24
LINE, SMALL, LARGE, INSET = 17, 6.7, 7.9, 24
"""Height of a line of text; width of a character of the small and the large font; left and right of the text."""
MAX_CHARACTERS = 56

START, END = "start", "end"
"""The ids of the two ends of a picture, and their types."""

Point = tuple[float, float]


@dataclass
class Leaf:
    """A box with text in it."""

    path: str
    node: Json
    width: float
    height: float
    words: tuple[str, str]
    """What it is, and its name; either may be empty."""
    more: str
    loose: bool = False
    """Whether the flow goes on below without waiting for it."""


@dataclass
class Column:
    """Rows of boxes below an optional heading. Its positions are relative to it."""

    part: Part
    heading: str
    rows: list[list[Box]]
    width: float = 0
    height: float = 0
    places: list[list[Point]] = field(default_factory=list)


@dataclass
class Frame:
    """A box around one or more columns."""

    path: str
    node: Json
    heading: str
    count: str
    columns: list[Column]
    width: float
    height: float
    offsets: list[float]
    loose: bool = False


Box = Leaf | Frame


@dataclass
class Section:
    """The workflow, or a function that it calls."""

    column: Column
    heading: str
    x: float = 0
    y: float = 0

    @property
    def width(self) -> float:
        return max(self.column.width, text_width(self.heading, LARGE) + 2 * PAD) + 2 * PAD

    @property
    def height(self) -> float:
        return self.column.height + HEAD + 2 * PAD


def sections(graph: Mapping[str, Any]) -> tuple[list[Section], float, float]:
    """Every section in its place; the width and height of the whole."""
    found = []
    for part in whole(graph):
        if part.id == MAIN:
            found.append(Section(column(part, "", *ends(graph)), f"workflow {short(part.heading)}"))
        else:
            found.append(Section(column(part, ""), f"function {short(part.heading)}"))
    x = y = float(MARGIN)
    bottom = right = y
    for section in found:
        if x > MARGIN and x + section.width > MAX_WIDTH:
            x, y = MARGIN, bottom + SECTION_GAP
        section.x, section.y = x, y
        x += section.width + SECTION_GAP
        bottom = max(bottom, y + section.height)
        right = max(right, section.x + section.width)
    return found, right + MARGIN, bottom + MARGIN


def ends(graph: Mapping[str, Any]) -> tuple[Leaf, Leaf]:
    """The boxes for the beginning and the end of the workflow; their ids are ``start`` and ``end``."""
    line = graph["workflow"]["line"]
    takes = f"{START} {graph['workflow'].get('payload') or ''}".strip()
    last = {"type": END, "name": END, "line": line}
    return leaf(START, {"type": START, "name": takes, "line": line}), leaf(END, last)


def column(part: Part, heading: str, first: Leaf | None = None, last: Leaf | None = None) -> Column:
    """Lay out the nodes of a part, between ``first`` and ``last``."""
    found: list[list[Box]] = [[first]] if first else []
    found += [[box(path, node) for path, node in row] for row in rows(part)]
    found += [[last]] if last else []
    made = Column(part, short(heading), found)
    for upper, lower in zip(made.rows, made.rows[1:], strict=False):
        begins, _ = bounds(lower[0].node)
        for each in upper:
            each.loose = is_loose(each.node, begins)
    widths = [sum(each.width for each in row) + GAP_X * (len(row) - 1) for row in made.rows]
    made.width = max([*widths, text_width(made.heading, SMALL), 60.0 if made.heading else 0])
    y = float(HEADING if made.heading else 0)
    for row, width in zip(made.rows, widths, strict=True):
        x = (made.width - width) / 2
        places = []
        for each in row:
            places.append((x, y))
            x += each.width + GAP_X
        made.places.append(places)
        y += max(each.height for each in row) + GAP_Y
    made.height = y - GAP_Y if made.rows else y + LINE
    return made


def box(path: str, node: Json) -> Box:
    """Lay out one node and all that is in it."""
    inner = parts(path, node)
    if not inner or (node["type"] == "block" and not node["nodes"]):
        return leaf(path, node)
    is_single = node["type"] == "if" and len(inner) == 1
    columns = [column(part, "" if is_single else part.heading) for part in inner]
    heading = short(frame_title(node))
    steps = count_steps(node)
    count = f"{steps} step{'' if steps == 1 else 's'}" if steps else ""
    across = sum(each.width for each in columns) + GAP_X * (len(columns) - 1)
    width = max(across, text_width(heading, LARGE) + text_width(count, SMALL) + 3 * INSET) + 2 * PAD
    offsets = []
    x = (width - across) / 2
    for each in columns:
        offsets.append(x)
        x += each.width + GAP_X
    height = HEAD + max((each.height for each in columns), default=0) + 2 * PAD
    return Frame(path, node, heading, count, columns, width, height, offsets)


def frame_title(node: Json) -> str:
    """What stands at the head of a frame: the condition, if there is but one."""
    inner = parts("", node)
    return inner[0].heading if node["type"] == "if" and len(inner) == 1 else title(node)


def leaf(path: str, node: Json) -> Leaf:
    """A box as wide as its text."""
    words = (KINDS.get(node["type"], ""), short(title(node)))
    said = [each for each in details(node) if each != ROLLBACK]  # that has a mark
    more = short(" · ".join([*said, *([f"row {span(node)}"] if span(node) else [])]))
    first = text_width(words[0], SMALL) + text_width(words[1], LARGE) + (SMALL if words[0] else 0)
    spare = SPARE if node.get("rollback") else 0
    width = max(first + spare, text_width(more, SMALL), 40.0) + INSET
    return Leaf(path, node, width, (2 if more else 1) * LINE + 14, words, more)


def wires(made: Column) -> list[tuple[str, str]]:
    """The lines between each row and the next: the path of the line, and of its arrow heads."""
    found = []
    for index in range(len(made.rows) - 1):
        upper = list(zip(made.rows[index], made.places[index], strict=True))
        lower = list(zip(made.rows[index + 1], made.places[index + 1], strict=True))
        tied = [each for each in upper if not each[0].loose] or upper
        above = [(x + each.width / 2, y + each.height) for each, (x, y) in tied]
        below = [(x + each.width / 2, y) for each, (x, y) in lower]
        found.append(_wire(above, below))
    return found


def _wire(above: list[Point], below: list[Point]) -> tuple[str, str]:
    bus = below[0][1] - GAP_Y / 2
    across = [x for x, _ in (*above, *below)]
    line = "".join(f"M{x:g},{y:g}V{bus:g}" for x, y in above)
    line += f"M{min(across):g},{bus:g}H{max(across):g}"
    line += "".join(f"M{x:g},{bus:g}V{y - 5:g}" for x, y in below)
    return line, "".join(f"M{x - 4:g},{y - 7:g}h8l-4,6z" for x, y in below)


def count_steps(node: Json) -> int:
    """How many steps stand in a node, itself included; a call counts as one."""
    inside = sum(count_steps(each) for part in parts("", node) for each in part.nodes)
    return inside + (node["type"] in KINDS)


def steps_of(graph: Mapping[str, Any]) -> Iterator[Json]:
    """Every step of a graph, those of its functions too."""
    return (place.document for place in places(graph) if place.document["type"].startswith("step_"))


def short(text: str) -> str:
    """Text that fits into a box."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def text_width(text: str, character: float) -> float:
    """How wide text is, in a font whose characters are that wide."""
    return sum(character * (2 if unicodedata.east_asian_width(each) in "WF" else 1) for each in text)
