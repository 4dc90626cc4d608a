"""Frames collapse in a real browser, by mouse and keyboard, and the script's sums are those of the layout."""

from __future__ import annotations

import re

import pytest

from orchestrator.diagrams.render.svg import svg
from tests.unit.diagrams.pictures import BROWSER, Dump, dump
from tests.unit.diagrams.shapes import Shape, shapes

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt install chromium"),
]

__all__ = ["dump"]

DRAWN = [shape for shape in shapes() if '<g class="head"' in svg(shape.graph())]
PLACED = re.compile(r'(?:transform|width|height|viewBox|d|x1|x2|y1|y2)="([^"]*)"')


def numbers(document: str) -> list[float]:
    """Every position and size in the pictures of a document."""
    document = document[document.index("</style>") :]
    found = [
        float(each) for place in PLACED.findall(document) for each in re.findall(r"-?\d+(?:\.\d+)?", place)
    ]
    assert found
    return found


def test_collapsing_and_opening_again_gives_the_picture_of_the_layout(dump: Dump) -> None:
    """All shapes on one page: every frame is shut and opened, and everything stands where it stood."""
    pictures = "".join(svg(shape.graph()) for shape in DRAWN)
    script = """
        for (const head of document.querySelectorAll('.head'))
          for (const _ of [1, 2])
            head.dispatchEvent(new MouseEvent('click', {bubbles: true}));
        """
    before, after = numbers(dump(pictures, "")), numbers(dump(pictures, script))
    assert len(before) == len(after) > 1_000
    assert after == pytest.approx(before, abs=0.06)


@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_frame_collapses_by_keyboard(dump: Dump, key: str) -> None:
    (shape,) = [shape for shape in DRAWN if shape.name == "the_example"]
    picture = svg(shape.graph())
    script = f"""
        const head = document.querySelector('.head');
        head.focus();
        document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}));
        document.title = getComputedStyle(head.parentNode.querySelector('.body')).display;
        """
    document = dump(picture, script)
    assert "<title>none</title>" in document
    assert 'aria-expanded="false"' in document
    assert height(document) < height(picture) - 100


def test_several_pictures_on_a_page_collapse_each_by_itself(dump: Dump) -> None:
    (shape,) = [shape for shape in DRAWN if shape.name == "the_example"]
    picture = svg(shape.graph())
    shut = """
        const head = document.querySelectorAll('svg')[1].querySelector('.head');
        head.dispatchEvent(new MouseEvent('click', {bubbles: true}));
        """
    first, second = re.findall(r"<svg.*?</svg>", dump(picture + picture, shut), re.S)
    assert height(first) == height(picture)
    assert height(second) < height(first)


def height(document: str) -> float:
    found = re.search(r'<svg[^>]* height="([\d.]+)"', document)
    assert found is not None
    return float(found[1])


def test_shapes_have_frames() -> None:
    assert len(DRAWN) > 30
    assert isinstance(DRAWN[0], Shape)
