"""api §3: each verb has an async twin with the prefix ``a``, which is called in the same way."""

import inspect
from typing import Any

import pytest

from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.workflow import Workflow

WITHOUT_A_SERVER = {"diagram"}


def verbs(owner: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")]


def positional(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of what may be given without a name."""
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.default) for each in found if each.kind is each.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("owner", [Workflow, WorkflowInstance])
def test_every_verb_has_a_twin_that_is_called_like_it(owner: type) -> None:
    """api §3: who changes ``list(None, 10, cursor)`` to ``await alist(None, 10, cursor)`` changes nothing else."""
    there = verbs(owner)
    twins = {name for name in there if name[0] == "a" and name[1:] in there}
    without = set(there) - twins - {name[1:] for name in twins}
    assert without <= WITHOUT_A_SERVER
    for twin in twins:
        assert positional(getattr(owner, twin)) == positional(getattr(owner, twin[1:])), twin
