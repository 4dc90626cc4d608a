"""``orchestrator instances …``: looking at one instance, and steering it.

Owns: the commands. Does not own what they do (``client``).
"""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.answers import Document, answering, from_json, shown
from orchestrator.client.instance import WorkflowInstance


@click.group()
def instances() -> None:
    """One instance, by the name of its workflow and its id."""


def _find(name: str, id: str) -> WorkflowInstance:
    from orchestrator.cli.registered import by_name

    return by_name(name).get(id)


def _render_description(document: Document) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    for field in ("workflow", "id", "status", "output", "error", "rollback", "blocked"):
        value = document[field]
        if value is not None:
            console.print(f"{field:10}{value if isinstance(value, str) else shown(value)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("step", "kind", "attempts", "status", "result"):
        table.add_column(column, header_style="bold", overflow="fold")
    for step in document["steps"]:
        result = step.error if step.error is not None else "" if step.output is None else shown(step.output)
        name = step.name if step.count == 1 else f"{step.name} ({step.count})"
        table.add_row(name, step.kind, str(len(step.attempts) or ""), step.status, str(result))
    if document["steps"]:
        console.print()
        console.print(table)


@instances.command()
@click.argument("name")
@click.argument("id")
@answering(_render_description)
def describe(name: str, id: str) -> Document:
    """Status, output, error and steps of instance ID of workflow NAME."""
    instance = _find(name, id)
    status = instance.status()
    return {
        "workflow": name,
        "id": instance.id,
        "status": status.status.value,
        "output": status.output,
        "error": status.error,
        "rollback": status.rollback,
        "blocked": status.blocked,
        "steps": instance.steps(),
    }


@instances.command()
@click.argument("name")
@click.argument("id")
@click.option(
    "--timeout", type=click.FloatRange(min=0), help="Seconds to wait for the end; for ever by default."
)
@answering(lambda document: click.echo(shown(document["output"])))
def result(name: str, id: str, timeout: float | None) -> Document:
    """Wait for the end of instance ID of workflow NAME, and print its output."""
    instance = _find(name, id)
    return {"workflow": name, "id": instance.id, "output": instance.result(timeout)}


@instances.command("send-event")
@click.argument("name")
@click.argument("id")
@click.option("--type", "event_type", required=True, help="The type that the workflow waits for.")
@click.option("--payload", type=from_json, help="JSON; null by default.")
@answering(lambda document: click.echo(f"sent {document['type']} to {document['workflow']} {document['id']}"))
def send_event(name: str, id: str, event_type: str, payload: Any) -> Document:
    """Send an event to instance ID of workflow NAME; it is kept until a wait of that type takes it."""
    instance = _find(name, id)
    instance.send_event(event_type, payload)
    return {"workflow": name, "id": instance.id, "type": event_type}


@instances.command()
@click.argument("name")
@click.argument("id")
@click.option("--rollback", is_flag=True, help="Run the compensations of what was done, first.")
@answering(lambda document: click.echo(f"{document['workflow']} {document['id']} is {document['status']}"))
def terminate(name: str, id: str, rollback: bool) -> Document:
    """Stop instance ID of workflow NAME; what its running steps return is not recorded."""
    instance = _find(name, id)
    instance.terminate(rollback)
    return {"workflow": name, "id": instance.id, "status": instance.status().status.value}
