"""``orchestrator instances …``: looking at instances.

Owns: the group, and the commands that ask. Does not own: those that change something (``steering``), how an instance
is shown to people (``description``), nor what the answers are (``client``).
"""

from __future__ import annotations

import json
from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, answering, code_of, print_line, shown
from orchestrator.cli.description import render_description, render_event, render_list
from orchestrator.errors import OrchestratorError
from orchestrator.workflow.status import Status

LISTED = 100
"""Instances on one page."""


@click.group()
def instances() -> None:
    """Instances, by the name of their workflow and their id; `latest` stands for the newest.

    These commands need no code of the workflow, only Postgres.
    """


@instances.command()
@addressed.instance_arguments
@answering(render_description)
def describe(name: str, id: str) -> Document:
    """Status, output, error, steps and attempts of instance ID of workflow NAME, and what operators did to it.

    Values of sensitive steps read [REDACTED].
    """
    instance = addressed.instance(name, id)
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
        "audit": instance.audit(),
    }


@instances.command()
@addressed.instance_arguments
@click.option(
    "--timeout", type=click.FloatRange(min=0), help="Seconds to wait for the end; for ever by default."
)
@answering(lambda document: click.echo(shown(document["output"])))
def result(name: str, id: str, timeout: float | None) -> Document:
    """Wait for the end of instance ID of workflow NAME, and print its output."""
    instance = addressed.instance(name, id)
    return {"workflow": name, "id": instance.id, "output": instance.result(timeout)}


@instances.command()
@addressed.instance_arguments
@click.option(
    "--include-sensitive",
    is_flag=True,
    help="Values of sensitive steps too; without them it cannot be replayed.",
)
@answering(lambda document: click.echo(json.dumps(document, indent=2)))
def history(name: str, id: str, include_sensitive: bool) -> Document:
    """Print the history of instance ID of workflow NAME: a JSON document to replay code against.

    `orchestrator.testing.replay_history(workflow, document)` says whether today's code still does what is recorded.
    """
    return addressed.instance(name, id).export_history(include_sensitive=include_sensitive)


@instances.command("list")
@addressed.workflow_argument
@click.option(
    "--status", "statuses", type=click.Choice([each.value for each in Status]), multiple=True,
    help="Only those in this status; may be given several times.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=LISTED, show_default=True, help="At most so many."
)
@click.option("--cursor", help="Go on where another page ended.")
@answering(render_list)
def list_(name: str, statuses: tuple[str, ...], limit: int, cursor: str | None) -> Document:
    """The instances of workflow NAME, newest first."""
    wanted = [Status(each) for each in statuses] or None
    page = addressed.workflow(name).list(status=wanted, limit=limit, cursor=cursor)
    return {"workflow": name, "instances": [_listed(each) for each in page.items], "cursor": page.cursor}


@instances.command()
@addressed.instance_arguments
@click.option("--cursor", type=int, help="Only what came after the event of this event_id.")
@click.option("--types", help="Only these types of events, separated by commas.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def subscribe(name: str, id: str, cursor: int | None, types: str | None, as_json: bool) -> None:
    """Print what happened in instance ID of workflow NAME, and go on as it happens, until it ends.

    A finished instance is told to its end at once. Ctrl-C stops.
    """
    chosen = [each.strip() for each in types.split(",") if each.strip()] if types is not None else None
    try:
        for event in addressed.instance(name, id).subscribe(cursor=cursor, types=chosen):
            print_line(event) if as_json else render_event(event)
    except OrchestratorError as error:
        if as_json:
            print_line({"error": {"code": code_of(error), "message": str(error)}})
        raise


def _listed(instance: Any) -> Document:
    known = instance.listed
    return {
        "id": instance.id,
        "status": known.status.value,
        "version": known.version,
        "created_at": known.created_at,
        "started_at": known.started_at,
        "ended_at": known.ended_at,
    }
