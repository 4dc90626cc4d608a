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


def _graph(example: str, name: str) -> dict[str, Any]:
    graph: dict[str, Any] = getattr(import_module(f"examples.{example}"), name).diagram()
    return graph
