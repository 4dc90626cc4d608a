"""A live trace in the picture: the states stand in it when it is drawn, and a page's script moves them the same way."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.diagrams.matching import KINDS
from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.parts import places
from orchestrator.diagrams.render.mermaid import mermaid
from orchestrator.diagrams.render.outline import MARKS
from orchestrator.diagrams.render.script import SCRIPT
from orchestrator.diagrams.render.style import DARK, LIGHT, LOOKS, STYLE
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.render.text import text
from orchestrator.diagrams.tracing import STATES, Trace, TracedStep, trace
from tests.unit.diagrams.pictures import SVG, Dump, dump, needs_browser, styled
from tests.unit.diagrams.shapes import Shape, shapes
from tests.unit.diagrams.test_pictures import contrast

__all__ = ["dump"]

SHAPES = shapes()
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

HOW: dict[str, dict[str, Any]] = {
    "running": {"status": "running"},
    "retrying": {"status": "pending", "attempt": 2},
    "compensating": {"status": "done", "handler": "running"},
    "waiting": {"status": "waiting"},
    "compensation_failed": {"status": "done", "handler": "failed"},
    "failed": {"status": "failed"},
    "compensated": {"status": "done", "handler": "done"},
    "done": {"status": "done"},
    "cancelled": {"status": "abandoned"},
}
"""How a step comes to be in a state."""


def made(graph: dict[str, Any], status: str = "running") -> Trace:
    """A trace with steps in every state, as far as the graph has steps; some ran more than once."""
    recorded = []
    for number, place in enumerate(p for p in places(graph) if p.document["type"] in KINDS):
        document = place.document
        name = document["name"].replace("${...}", "7")
        for count in range(1, 1 + number % 4):
            how = HOW[list(HOW)[(number + count) % len(HOW)]]
            kind = KINDS[document["type"]]
            key = f"{kind}:{name}:{count}"
            recorded.append(TracedStep(key, kind, name, count, line=document["line"], **how))
    return trace(graph, recorded, status)


def nodes(picture: str) -> dict[str, dict[str, str]]:
    return {
        each.attrib["data-node"]: each.attrib
        for each in ET.fromstring(picture).iter()
        if "data-node" in each.attrib
    }


@every_shape
def test_states_stand_in_the_picture_as_attributes(shape: Shape) -> None:
    """Semantics §8: every node has an id of its own that trace and picture share; a state is but an attribute."""
    graph = shape.graph()
    laid = made(graph)
    drawn, plain = nodes(svg(graph, laid)), nodes(svg(graph))
    assert set(laid.nodes) <= set(drawn)
    assert {node: each["data-state"] for node, each in drawn.items() if "data-state" in each} == {
        node: laid.state(node) for node in drawn if "data-state" in plain[node]
    } | {"start": "done", "end": "pending"}
    still = {"data-state", "aria-label"}
    for node, each in drawn.items():
        assert {k: v for k, v in each.items() if k not in still} == {
            k: v for k, v in plain[node].items() if k not in still
        }
        if each["data-type"].startswith("step_") and "leaf" in each["class"]:
            assert (each["tabindex"], each["role"], each["id"]) == ("0", "button", f"node-{node}")
            assert each["aria-label"].startswith(each["data-label"] + ": ")
    assert svg(graph, laid) == svg(graph, laid.json())


def test_a_bare_picture_has_no_style_and_no_script() -> None:
    graph = SHAPES[0].graph()
    assert STYLE in svg(graph)
    assert SCRIPT in svg(graph)
    bare = svg(graph, bare=True)
    assert "<style" not in bare
    assert "<script" not in bare
    assert nodes(bare) == nodes(svg(graph))


def test_every_state_has_a_look_of_its_own() -> None:
    """Not by colour alone: states of one colour have different marks, or mean the same going on and done."""
    assert set(LOOKS) == set(STATES) - {"pending"}
    looks = {state: look for state, look in LOOKS.items() if state != "compensating"}
    assert len(set(looks.values())) == len(looks)
    picture = svg(SHAPES[0].graph())
    for _, glyph in LOOKS.values():
        assert f'<path class="{glyph}"' in picture


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_states_can_be_read(colours: dict[str, str]) -> None:
    """WCAG 2: text on the tint of a state 4.5, as the number in a badge; borders 3."""
    for colour, _ in LOOKS.values():
        for name in ("text", "muted"):
            assert contrast(colours[name], colours[f"{colour}-tint"]) >= 4.5, (name, colour)
        assert contrast(colours[colour], colours["ground"]) >= 4.5, colour
        for ground in ("section", "body", "parallel", "loop", f"{colour}-tint"):
            assert contrast(colours[colour], colours[ground]) >= 3, (colour, ground)


# -- in a browser ----------------------------------------------------------------------------------------------

MOVED = """
    document.querySelectorAll('svg.orchestrator-diagram').forEach((svg, n) =>
      TRACES[n].forEach(trace => orchestratorDiagram.apply(svg, trace)));
    """


def plainly(picture: str) -> list[Any]:
    """What stands in a picture, without positions of what the script has set."""
    found = []
    for each in ET.fromstring(picture).iter():
        tag = each.tag.removeprefix(SVG)
        if tag in ("style", "script"):
            continue
        attributes = {k: v for k, v in each.attrib.items() if k != "data-attached"}
        for name in ("x", "width"):
            if name in attributes:
                attributes[name] = f"{float(attributes[name]):.1f}"
        found.append((tag, sorted(attributes.items()), (each.text or "").strip()))
    return found


@needs_browser
def test_a_page_moves_the_states_to_where_they_would_be_drawn(dump: Dump) -> None:
    """All shapes on one page: laid over one after the other, the last trace is what is seen, and nothing is left."""
    graphs = [shape.graph() for shape in SHAPES]
    laid = [(made(graph, "errored"), made(graph), trace(graph, [], "complete")) for graph in graphs]
    texts = [
        [each.json() for each in (*both, both[1], *([both[0]] if n % 2 else []))]
        for n, both in enumerate(laid)
    ]
    pictures = "".join(svg(graph, bare=True) for graph in graphs)
    document = dump(f"<style>{STYLE}</style>{pictures}", f"{SCRIPT};const TRACES={json.dumps(texts)};{MOVED}")
    moved = re.findall(r"<svg.*?</svg>", document, re.S)
    assert len(moved) == len(graphs)
    for number, (graph, both, found) in enumerate(zip(graphs, laid, moved, strict=True)):
        last = both[0] if number % 2 else both[1]
        assert plainly(found) == plainly(svg(graph, last, bare=True)), graph["workflow"]["class_name"]


@needs_browser
def test_the_style_sheet_shows_each_state(dump: Dump) -> None:
    """Border, mark and badge as computed by the browser, from the attribute alone."""
    graph = SHAPES[0].graph()
    script = """
        const node = document.querySelector('[data-step]'), face = node.querySelector('.face');
        const mark = node.querySelector('.mark'), badge = node.querySelector('.badge'), seen = {};
        const shown = el => getComputedStyle(el).display !== 'none';
        for (const state of STATES) {
          node.dataset.state = state;
          const paths = shown(mark) ? [...mark.querySelectorAll('path')] : [];
          const glyphs = paths.filter(shown).map(path => path.className.baseVal);
          seen[state] = [getComputedStyle(face).stroke, glyphs];
        }
        const badges = ['0', '1', '2'].map(total => (badge.dataset.total = total, shown(badge)));
        document.title = JSON.stringify([seen, badges]);
        """
    document = dump(styled(svg(graph), "light"), f"const STATES={json.dumps(STATES)};{script}")
    seen, badges = json.loads(re.search(r"<title>(\[.*?)</title>", document)[1])  # type: ignore[index]
    assert badges == [False, False, True]
    assert seen.pop("pending")[1] == []
    for state, (stroke, glyphs) in seen.items():
        colour, glyph = LOOKS[state]
        assert glyphs == [glyph]
        red, green, blue = (int(LIGHT[colour][at : at + 2], 16) for at in (1, 3, 5))
        assert stroke == f"rgb({red}, {green}, {blue})"


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_chooses_the_theme(dump: Callable[[str, str], str], theme: str) -> None:
    picture = styled(svg(SHAPES[0].graph()), theme)
    script = "document.title = getComputedStyle(document.querySelector('svg')).backgroundColor"
    ground = {"light": LIGHT, "dark": DARK}[theme]["ground"]
    red, green, blue = (int(ground[at : at + 2], 16) for at in (1, 3, 5))
    assert f"<title>rgb({red}, {green}, {blue})</title>" in dump(picture, script)


# -- as text ---------------------------------------------------------------------------------------------------

EXAMPLE = """
async def flow(event: WorkflowEvent[Order], step):
    for each in event.payload:
        await step.do("load", work)
    await step.do("pay", work, rollback=undo)
    await step.wait_for_event("approval", type="ok")
    await step.do("ship", work)
"""


def example() -> tuple[dict[str, Any], Trace]:
    graph = parse(Source("flows", EXAMPLE), "flow")
    recorded = [
        TracedStep("do:load:1", "do", "load", 1, "done"),
        TracedStep("do:load:2", "do", "load", 2, "failed"),
        TracedStep("do:pay:1", "do", "pay", 1, "done", handler="failed"),
        TracedStep("wait:approval:1", "wait", "approval", 1, "done"),
    ]
    return graph, trace(graph, recorded, "errored")


def test_states_in_text() -> None:
    graph, laid = example()
    assert text(graph, laid) == text(graph, laid.json())
    assert text(graph, laid).splitlines() == [
        "workflow flow",
        "├─ for each in event.payload",
        '│  └─ ✗ do "load"  (2 times: 1 failed, 1 done)',
        '├─ ✗ do "pay"  rollback  (compensation failed)',
        '├─ ✓ wait for event "approval"  type ok, timeout 24 hours',
        '└─ · do "ship"',
    ]


def test_states_in_mermaid() -> None:
    graph, laid = example()
    assert mermaid(graph, laid) == mermaid(graph, laid.json())
    lines = [line.strip() for line in mermaid(graph, laid).splitlines()]
    assert 'n3["do load<br/>2 times: 1 failed, 1 done"]' in lines
    assert 'n6["do ship"]' in lines
    assert [line for line in lines if line.startswith("class ")] == [
        "class n1,n5 done",
        "class n3 failed",
        "class n4 compensation_failed",
    ]
    assert "classDef failed fill:#fce8e6,stroke:#b3261e,color:#1c2330" in lines
    assert not [line for line in mermaid(graph).splitlines() if "class" in line]


@every_shape
def test_every_shape_has_its_states_in_text_and_mermaid(shape: Shape) -> None:
    graph = shape.graph()
    laid = made(graph)
    ran = [node for node, each in laid.nodes.items() if node in leaves(graph)]
    for mark in {MARKS[laid.state(node)] for node in ran}:
        assert f" {mark} " in text(graph, laid)
    for state in {laid.state(node) for node in ran}:
        assert f"classDef {state} " in mermaid(graph, laid)


def leaves(graph: dict[str, Any]) -> set[str]:
    """Steps and calls that are no frame around others."""
    return {
        place.node
        for place in places(graph)
        if place.document["type"] in (*KINDS, "function_call") and not place.document.get("nodes")
    }
