"""What applications hold may not be used by workflow code outside a step: every verb says so."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.workflow import Workflow
from orchestrator.errors import NotDurable
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.loop import workflow_context

SILENT = {"get", "aget", "diagram"}
"""They ask no service: an instance is only named, a diagram comes from the source."""


async def outside(event, step):
    """A workflow whose verbs are called."""


DEFINITION = define(outside)
NOBODY: Any = None
"""There is no orchestrator behind them: whoever reached for it would fail otherwise."""


def verbs(holder: Any) -> list[Any]:
    names = [name for name in dir(type(holder)) if not name.startswith("_") and name not in SILENT]
    public = [name for name in names if inspect.isfunction(inspect.getattr_static(type(holder), name))]
    return [pytest.param(getattr(holder, name), id=f"{type(holder).__name__}.{name}") for name in public]


def called(verb: Callable[..., Any]) -> Any:
    """The verb's call, with ``None`` for whatever it asks for."""
    needed = [each for each in inspect.signature(verb).parameters.values() if each.default is each.empty]
    plain = [each for each in needed if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    found = verb(*[None for _ in plain])
    if inspect.iscoroutine(found):
        return asyncio.run(found)
    return found


@pytest.mark.parametrize(
    "verb", [*verbs(Workflow(DEFINITION)), *verbs(WorkflowInstance(DEFINITION, "one", NOBODY))]
)
def test_every_verb_is_refused_in_workflow_code(verb: Callable[..., Any]) -> None:
    """Protocols §2: asked before anything else, by name, with the way out; the asynchronous twins too."""
    with pytest.raises(NotDurable, match=r"call it inside step\.do") as caught:
        workflow_context().run(called, verb)
    assert str(caught.value).startswith(f"{verb.__name__}()")
