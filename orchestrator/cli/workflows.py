"""``orchestrator workflows …``: what can be started, and starting it.

Owns: the commands. Does not own what they do (``client``).
"""

from __future__ import annotations

import inspect
from typing import Any

import click

from orchestrator.cli.answers import Document, answering, from_json


@click.group()
def workflows() -> None:
    """The workflows that ORCHESTRATOR_WORKFLOWS names."""


def _render_list(document: Document) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("workflow", "version", "module", "about"):
        table.add_column(column, header_style="bold", overflow="fold")
    for each in document["workflows"]:
        table.add_row(each["name"], each["version"], each["module"], each["about"])
    Console(highlight=False, markup=False).print(table)


@workflows.command("list")
@answering(_render_list)
def list_() -> Document:
    """Every registered workflow and version."""
    from orchestrator.cli.registered import all_workflows

    return {
        "workflows": [
            {
                "name": each.name,
                "version": each.version,
                "module": each.__module__,
                "about": (inspect.getdoc(each.fn) or "").partition("\n")[0],
            }
            for each in all_workflows()
        ]
    }


@workflows.command()
@click.argument("name")
@click.argument("params", type=from_json, required=False)
@click.option("--id", "instance_id", help="The instance's id; a fresh UUID by default.")
@answering(lambda document: click.echo(f"{document['workflow']} {document['id']}"))
def trigger(name: str, params: Any, instance_id: str | None) -> Document:
    """Create an instance of workflow NAME with PARAMS, which are JSON."""
    from orchestrator.cli.registered import by_name

    workflow = by_name(name)
    instance = workflow.create(params, id=instance_id)
    return {"workflow": workflow.name, "version": workflow.version, "id": instance.id}
