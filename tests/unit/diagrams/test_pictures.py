"""The pictures of a graph: well-formed, complete, readable, the same ids as long as the code is the same."""

from __future__ import annotations

import re
import textwrap
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.render.layout import Frame, sections, steps_of
from orchestrator.diagrams.render.mermaid import mermaid
from orchestrator.diagrams.render.style import DARK, LIGHT
from orchestrator.diagrams.render.svg import svg
from orchestrator.diagrams.render.text import text
from tests.unit.diagrams.shapes import Shape, shapes

SVG = "{http://www.w3.org/2000/svg}"
SHAPES = shapes()

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def graph_of(source: str, name: str = "flow") -> dict[str, Any]:
    return parse(Source("flows", textwrap.dedent(source)), name)


def wide_graph(steps: int) -> dict[str, Any]:
    lines = [f'    await step.do("step number {n}", work)' for n in range(steps)]
    return graph_of("async def flow(event, step):\n" + "\n".join(lines))


@every_shape
def test_an_svg_is_well_formed_and_has_every_step(shape: Shape) -> None:
    graph = shape.graph()
    root = ET.fromstring(svg(graph))
    found = [each.attrib for each in root.iter() if "data-node" in each.attrib]
    assert len({each["data-node"] for each in found}) == len(found)
    steps = sorted((each["name"], str(each["line"])) for each in steps_of(graph))
    assert sorted((e["data-step"], e["data-line"]) for e in found if "data-step" in e) == steps
    assert (root.find(f"{SVG}title") is not None, root.find(f"{SVG}desc") is not None) == (True, True)
    for head in (each for each in root.iter() if each.get("class") == "head"):
        assert (head.get("tabindex"), head.get("role"), head.get("aria-expanded")) == ("0", "button", "true")
        assert head.get("aria-label")
    anchors = {each.get("id") for each in root.iter()}
    assert {each.attrib["href"][1:] for each in root.iter(f"{SVG}a")} <= anchors


@every_shape
def test_boxes_stand_inside_their_frames_and_beside_each_other(shape: Shape) -> None:
    found, width, height = sections(shape.graph())
    for section in found:
        assert section.x + section.width <= width
        assert section.y + section.height <= height
        columns = [section.column]
        while columns:
            column = columns.pop()
            bottom = 0.0
            for row, places in zip(column.rows, column.places, strict=True):
                right = 0.0
                for box, (x, y) in zip(row, places, strict=True):
                    assert x >= right - 0.01
                    assert y >= bottom
                    right = x + box.width
                    if isinstance(box, Frame):
                        columns += box.columns
                        for inner, offset in zip(box.columns, box.offsets, strict=True):
                            assert offset >= 0
                            assert offset + inner.width <= box.width
                            assert inner.height < box.height
                assert right <= column.width + 0.01
                bottom = max(y + box.height for box, (_, y) in zip(row, places, strict=True))
            assert bottom <= column.height


@every_shape
def test_every_step_stands_in_text_and_mermaid(shape: Shape) -> None:
    graph = shape.graph()
    for each in steps_of(graph):
        assert f'"{each["name"]}"' in text(graph)
        assert each["name"] in mermaid(graph)


def test_ids_do_not_depend_on_what_stands_elsewhere() -> None:
    """A live trace is laid over the picture by them."""
    before = graph_of('async def flow(event, step):\n    await step.do("a", f)\n    await step.do("b", f)\n')
    after = graph_of(
        "import x\n\nasync def flow(event, step):\n    await step.do('a', f)\n    await step.do('b', f)\n"
    )
    ids = [re.findall(r'data-node="([^"]+)"', svg(each)) for each in (before, after)]
    assert ids[0] == ids[1] == ["start", "main.0", "main.1", "end"]


def test_a_hundred_steps_stay_readable() -> None:
    found, width, _ = sections(wide_graph(100))
    assert len(found[0].column.rows) == 1 + 100 + 1
    assert width < 600
    boxes = [row[0] for row in found[0].column.rows[1:-1]]
    assert min(box.height for box in boxes) >= 30


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.text(max_size=30))
def test_any_name_can_be_drawn(name: str) -> None:
    graph = graph_of(
        f"async def flow(event, step):\n    await step.do({name!a}, f)\n    for x in {name!a}:\n        await g(step)\n"
    )
    root = ET.fromstring(svg(graph).encode("utf-8"))
    (drawn,) = [each for each in root.iter() if "data-step" in each.attrib]
    plain = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", name)
    assert drawn.attrib["data-step"].split() == plain.split()
    assert len(mermaid(graph).splitlines()) == len(mermaid(wide_graph(1)).splitlines()) + 4
    assert text(graph).startswith("workflow flow\n")


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_apart(colours: dict[str, str]) -> None:
    """WCAG 2: text 4.5, lines and borders that matter 3."""
    grounds = ("section", "body", "box", "parallel", "loop")
    for ground in grounds:
        for name in ("text", "muted", "marked", "do", "wait", "sleep", "call", "leave"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("wire", "focus", "frame"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


EXAMPLE = """
    import asyncio

    async def flow(event, step):
        if event.payload > 3:
            await step.do("big", work, retries=Retries(limit=2))
        else:
            raise ValueError
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(step.do("a", work))
                group.create_task(part(step))
        except* (ValueError, KeyError):
            return
        while True:
            await step.wait_for_event("more", type="more")

    async def part(step):
        await step.sleep("nap", "1 hour")
"""


def test_text() -> None:
    assert text(graph_of(EXAMPLE)) == textwrap.dedent("""\
        workflow flow
        ├─ if event.payload > 3
        │  └─ do "big"  retries 2 × 10 seconds exponential
        ├─ else
        │  └─ raise
        ├─ try
        │  └─ all of
        │     ├─ do "a"  [1→2]
        │     └─ call part()  [1→2]
        ├─ except (ValueError, KeyError)
        │  └─ return
        └─ while True
           └─ wait for event "more"  type more, timeout 24 hours

        function part
        └─ sleep "nap"  1 hour
        """)


def test_mermaid() -> None:
    assert mermaid(graph_of(EXAMPLE)) == textwrap.dedent("""\
        flowchart TD
          n1(["flow"])
          n2{"if event.payload #gt; 3"}
          n3["do big<br/>retries 2 × 10 seconds exponential"]
          n4(["raise"])
          subgraph s5["try"]
            n6((" "))
            subgraph s7["all of"]
              n8["do a"]
              n9[["call part()"]]
            end
          end
          n10(["return"])
          subgraph s11["while True"]
            n12{{"wait for event more<br/>type more<br/>timeout 24 hours"}}
          end
          subgraph s13["function part"]
            n14(["part"])
            n15("sleep nap<br/>1 hour")
          end
          n1 --> n2
          n2 -->|"yes"| n3
          n2 -->|"else"| n4
          n3 --> n6
          n6 --> n8
          n6 --> n9
          n6 -->|"except (ValueError, KeyError)"| n10
          n8 --> n12
          n9 --> n12
          n14 --> n15
          n9 -.-> n14
        """)
