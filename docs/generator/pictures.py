"""What the examples look like, drawn from their source."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def mermaid(example: str, name: str) -> str:
    """The diagram of the workflow ``name`` of ``examples/<example>.py``, for Markdown."""
    from orchestrator.diagrams.render.mermaid import mermaid as drawn

    return f"```mermaid\n{drawn(_graph(example, name)).strip()}\n```"


def text(example: str, name: str) -> str:
    """The same as the terminal shows it."""
    from orchestrator.diagrams.render.text import text as drawn

    return f"```text\n{drawn(_graph(example, name)).strip()}\n```"


AGENTS = ["research", "critic", "numbers"]
REVIEWED = [
    *[("do", f"{agent} agent (loop 1)", {"status": "done"}) for agent in AGENTS],
    ("do", "summary agent (loop 1)", {"status": "done"}),
    ("wait", "user response (loop 1)", {"status": "done"}),
    ("do", "research agent (loop 2)", {"status": "done"}),
    ("do", "critic agent (loop 2)", {"status": "pending", "attempt": 2}),
    ("do", "numbers agent (loop 2)", {"status": "running"}),
]
"""The steps of an instance of ``agent_loop`` in its second round."""
UNDONE = [
    ("do", "reserve", {"status": "done", "handler": "running"}),
    ("do", "charge", {"status": "done", "handler": "done"}),
    ("do", "buy label", {"status": "failed"}),
]
"""Those of an ``order`` that is being undone."""


def live(example: str, name: str, recorded: list[tuple[str, str, dict[str, Any]]], status: str) -> str:
    """The SVG of that workflow, with an instance laid over it that has these steps and this status."""
    from orchestrator.diagrams.render.svg import svg
    from orchestrator.diagrams.tracing import TracedStep, trace

    graph = _graph(example, name)
    steps = [TracedStep(f"{kind}:{called}:1", kind, called, 1, **how) for kind, called, how in recorded]
    return svg(graph, trace(graph, steps, status))


def _graph(example: str, name: str) -> dict[str, Any]:
    graph: dict[str, Any] = getattr(import_module(f"examples.{example}"), name).diagram()
    return graph
