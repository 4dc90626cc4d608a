"""What commands are told to act on: a workflow by its name, an instance by its id or as ``latest``.

Owns: finding the instance, and completing names in a shell. Does not own: importing workflows (``registered``).

Commands on instances need no code of the workflow: everything about an instance stands in its rows. So they work on
any machine that reaches Postgres, and when the code is broken or gone.
"""

from __future__ import annotations

import contextlib
from typing import Any

import click
from click.shell_completion import CompletionItem

from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.workflow import Workflow, without_code
from orchestrator.errors import InstanceNotFound, OrchestratorError

LATEST = "latest"
"""Stands for the instance that was created last."""


def names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The registered names that begin so, if their modules can be imported here."""
    from orchestrator.cli.registered import all_workflows

    known: set[str] = set()
    with contextlib.suppress(OrchestratorError):
        known = {each.name for each in all_workflows()}
    return [CompletionItem(name) for name in sorted(known) if name.startswith(incomplete)]


def _ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(LATEST, help="the newest instance")] if LATEST.startswith(incomplete) else []


def workflow_argument(command: Any) -> Any:
    """The argument NAME."""
    return click.argument("name", shell_complete=names)(command)


def instance_arguments(command: Any) -> Any:
    """The arguments NAME and ID."""
    return workflow_argument(click.argument("id", shell_complete=_ids)(command))


def workflow(name: str) -> Workflow:
    """The workflow of that name as rows know it, without its code: outputs are plain JSON values.

    Raises ``InvalidName``.
    """
    return without_code(name)


def instance(name: str, id: str) -> WorkflowInstance:
    """The instance ``id`` of workflow ``name``; ``latest`` is the newest. Raises ``InstanceNotFound``."""
    found = workflow(name)
    if id == LATEST:
        return found.latest()
    try:
        return found.get(id)
    except InstanceNotFound:
        raise InstanceNotFound(
            id,
            f"there is no instance with the id {id!r} of workflow {name!r} "
            f"(orchestrator instances list {name} shows those there are)",
        ) from None
