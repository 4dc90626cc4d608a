"""Any valid Python can be drawn: every file of the standard library, with a workflow in it that calls what is there.

By default the library's own tests are left out, and the workflow of a file calls its first few functions and
classes; in a soak (``ORCHESTRATOR_SOAK``) all are drawn, and all is called.
"""

from __future__ import annotations

import ast
import io
import json
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source
from orchestrator.diagrams.render.text import text

LIBRARY = Path(sysconfig.get_path("stdlib"))
CHUNKS = 8
SOAK = bool(os.environ.get("ORCHESTRATOR_SOAK"))
CALLS = 10_000 if SOAK else 8
LEFT_OUT = {"site-packages"} if SOAK else {"site-packages", "test", "tests", "idle_test"}


def files() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py") if not LEFT_OUT & set(path.parts))


def calls(tree: ast.Module) -> Iterator[str]:
    """Calls of all functions and methods of a module, each given the step object."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"await {node.name}(step, step=step)"
        elif isinstance(node, ast.ClassDef):
            yield f"it = {node.name}(step)"
            yield "it.step = step"
            for method in node.body:
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield f"await it.{method.name}(step)"


def with_workflow(path: Path) -> str | None:
    """The text of a file with a workflow at its end; ``None`` if it is not Python (there are such, for tests)."""
    raw = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        decoded = raw.decode(encoding)
        tree = ast.parse(decoded)
    except (SyntaxError, ValueError, RecursionError):
        return None
    body = "\n".join(f"    {line}" for line in [*list(calls(tree))[:CALLS], 'await step.do("last", print)'])
    return f"{decoded}\n\nasync def a_workflow_of_ours(event, step):\n{body}\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_file_of_the_standard_library_can_be_drawn(chunk: int) -> None:
    drawn = 0
    for path in files()[chunk::CHUNKS]:
        source = with_workflow(path)
        if source is None:
            continue
        graph = parse(Source(path.stem, source), "a_workflow_of_ours")
        assert '"last"' in text(graph), path
        assert json.loads(json.dumps(graph, allow_nan=False)) == graph, path
        drawn += 1
    assert drawn > 10
