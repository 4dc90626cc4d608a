"""Every shape of the golden corpus has the graph that stands beside it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.diagrams.shapes import Shape, shapes, shortened

ROOT = Path(__file__).resolve().parents[3]
SHAPES = shapes()
TYPES = {
    "start", "step_do", "step_sleep", "step_sleep_until", "step_wait_for_event", "step_invoke", "loop", "block",
    "parallel", "try", "if", "switch", "function_call", "function_def", "break",
}  # fmt: skip

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def test_the_corpus_is_large_and_has_every_type() -> None:
    text = json.dumps([shape.expected for shape in SHAPES])
    assert len(SHAPES) >= 70
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    assert {kind for kind in TYPES if f'"type": "{kind}"' not in text} == set()


@every_shape
def test_the_graph_is_the_expected_one(shape: Shape) -> None:
    graph = shape.graph()
    assert graph["version"] == 1
    assert shortened(graph["workflow"]) == shape.expected


@every_shape
def test_every_step_in_the_source_is_drawn_on_its_line(shape: Shape) -> None:
    """Semantics §8: each node carries its line. Only code that is not come to, and handlers, are not drawn."""
    drawn = set()

    def collect(node: object) -> None:
        if isinstance(node, dict):
            if str(node.get("type", "")).startswith("step_"):
                drawn.add((node["name"], node["line"]))
            for each in node.values():
                collect(each)
        elif isinstance(node, list):
            for each in node:
                collect(each)

    collect(shape.graph())
    for source in shape.modules.values():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(ast.Attribute(attr="do"), [ast.Constant(str() as name), ast.Name("work"), *_]):
                    assert (name, node.lineno) in drawn or name == "never"


def test_graphs_are_the_same_in_every_process() -> None:
    """Sets iterate differently from process to process; graphs do not depend on it."""
    code = (
        "import hashlib, json\n"
        "from tests.unit.diagrams.shapes import shapes\n"
        "print(hashlib.sha256(json.dumps([s.graph() for s in shapes()]).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True, timeout=100,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


def test_the_whole_document_of_a_step() -> None:
    """Nothing is left out: what the corpus shortens stands here in full."""
    (shape,) = [shape for shape in SHAPES if shape.name == "one_after_the_other"]
    first = shape.graph()["workflow"]["nodes"][0]
    assert first == {
        "type": "step_do",
        "name": "first",
        "config": {
            "retries": {"limit": 5, "delay": "10 seconds", "backoff": "exponential"},
            "timeout": "10 minutes",
        },
        "nodes": [],
        "line": 4,
    }
