"""Labels of steps: bounded, as they stand in the source."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from orchestrator.workflow.language.definition import define
from orchestrator.workflow.language.labels import DYNAMIC, label
from tests.laws.world import World

SOURCE = """\
async def flow(event, step, name):
    await step.do("plain", f)
    await step.do(f"item {name}", f)
    await step.do(name, f)
    await step.do(
        f"{name}: over {name!r} lines",
        f,
    )
    await gather(step.do("a", f), step.do(f"b{name}", f))
    await step.do(name="named", fn=f)
    await step.do("with ${...} in it", f)
    await step.do(f"{{braces}} {name:>3}", f)
"""


@pytest.fixture
def filename(tmp_path: Path) -> str:
    path = tmp_path / "flow.py"
    path.write_text(SOURCE)
    return str(path)


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        (2, "plain", "plain"),
        (3, "item 7", "item ${...}"),
        (3, "item ", "item ${...}"),
        (4, "whatever", DYNAMIC),
        (5, "x: over 'x' lines", "${...}: over ${...} lines"),
        (7, "x: over 'x' lines", "${...}: over ${...} lines"),
        (9, "a", "a"),
        (9, "b3", "b${...}"),
        (9, "neither", DYNAMIC),
        (10, "named", "named"),
        (11, "with ${...} in it", "with ${...} in it"),
        (12, "{braces}   7", "{braces} ${...}"),
        (2, "made by a wrapper", DYNAMIC),
        (99, "plain", DYNAMIC),
    ],
)
def test_the_label_of_a_call(filename: str, line: int, name: str, expected: str) -> None:
    """Protocols §19: dynamic parts as ``${...}``; what is not in the source is dynamic altogether."""
    assert label(filename, line, name) == expected


def test_parts_of_a_template_do_not_overlap(tmp_path: Path) -> None:
    """A name fits a template only if its parts follow each other."""
    path = tmp_path / "overlap.py"
    path.write_text('step.do(f"ab{x}ba")\n')
    assert label(str(path), 1, "abba") == "ab${...}ba"
    assert label(str(path), 1, "aba") == DYNAMIC


@pytest.mark.parametrize("filename", ["<stdin>", "/nowhere/at/all.py"])
def test_code_without_source(filename: str) -> None:
    """Code from a prompt, or without its file, has dynamic labels."""
    assert label(filename, 1, "plain") == DYNAMIC


def test_source_that_does_not_parse(tmp_path: Path) -> None:
    """The file may have changed since it was imported."""
    path = tmp_path / "broken.py"
    path.write_text("def (:\n")
    assert label(str(path), 1, "plain") == DYNAMIC


def test_labels_of_running_steps() -> None:
    """Protocols §19: hand-outs carry the workflow and the label, never a dynamic name."""

    def give(value: Any) -> Any:
        return value

    async def flow(event, step):
        for index in range(2):
            await step.do(f"item {index}", give, index)

    world = World(define(flow))
    world.turn()
    world.end()
    assert [offer.label for offer in world.offered] == ["flow.item ${...}"] * 2
    assert {row.label for row in world.rows.values()} == {"item ${...}"}


def test_a_tree_that_cannot_be_built_costs_a_label_and_no_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Building a tree may raise ``SystemError`` in CPython 3.11 while another thread builds one: it is tried again; and
    where it never comes, the label is only less telling."""
    parse, failures = ast.parse, iter([SystemError("AST constructor recursion depth mismatch")] * 2)

    def sometimes(text: str) -> ast.AST:
        for error in failures:
            raise error
        return parse(text)

    def never(text: str) -> ast.AST:
        raise SystemError("AST constructor recursion depth mismatch")

    for name, parser, expected in (("once.py", sometimes, "spelt"), ("never.py", never, DYNAMIC)):
        path = tmp_path / name
        path.write_text('step.do("spelt", body)\n')
        with monkeypatch.context() as patched:
            patched.setattr(ast, "parse", parser)
            assert label(str(path), 1, "spelt") == expected
