"""``orchestrator workflows …``: what can be started, starting it, and doing away with it.

Owns: the commands. Does not own what they do (``client``), nor ``diagram`` (``diagrams``).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, answering, from_json, shown
from orchestrator.cli.description import columns, print_table
from orchestrator.client.workflow import Workflow
from orchestrator.errors import OrchestratorError
from orchestrator.settings import PREFIX


@click.group()
def workflows() -> None:
    """The workflows that ORCHESTRATOR_WORKFLOWS names."""


def _render_list(document: Document) -> None:
    table = columns("workflow", "version", "instances", "module", "about")
    for each in document["workflows"]:
        count = "" if each["instances"] is None else f"{each['instances']:,}"
        table.add_row(each["name"], each["version"], count, each["module"], each["about"])
    print_table(table)


@workflows.command("list")
@answering(_render_list)
def list_() -> Document:
    """Every registered workflow and version, and how many instances of the workflow a worker has counted last.

    Needs no server: where there is none, or nothing was counted yet, it says nothing about that.
    """
    from orchestrator.cli.registered import all_workflows

    kept = _kept() if os.environ.get(PREFIX + "DATABASE_URL") else {}
    return {
        "workflows": [
            {
                "name": each.name,
                "version": each.version,
                "instances": kept.get(each.name),
                "module": each.__module__,
                "about": _about(each).partition("\n")[0],
            }
            for each in all_workflows()
        ]
    }


def _kept() -> dict[str, int]:
    """The counts that are kept, by workflow; none where Postgres does not say. Nothing is counted for this."""
    from orchestrator.client.orchestrator import current
    from orchestrator.store.control import counts

    with contextlib.suppress(OrchestratorError):
        where = current()
        with where.lanes.statement() as connection:
            return {
                name: kept.total for name, kept in counts.read(connection, where.settings.account).items()
            }
    return {}


def _render_description(document: Document) -> None:
    for field, value in document.items():
        if value not in (None, "", [], {}) and field not in ("about", "instances"):
            click.echo(f"{field:20}{value if isinstance(value, str) else shown(value)}")
    if document["about"]:
        click.echo(f"\n{document['about']}")
    if document["instances"] is not None:
        table = columns("status", "instances")
        for status, count in document["instances"].items():
            table.add_row(status, str(count))
        click.echo()
        print_table(table)


@workflows.command()
@addressed.workflow_argument
@answering(_render_description)
def describe(name: str) -> Document:
    """The code and the options of workflow NAME, and how many instances it has in each status.

    The version is the one that was registered last. Without ORCHESTRATOR_DATABASE_URL no instances are counted.
    """
    from orchestrator.cli.registered import all_workflows, by_name

    workflow = by_name(name)
    definition, options = workflow.definition, workflow.definition.options
    counts = workflow.count() if os.environ.get(PREFIX + "DATABASE_URL") else None
    return {
        "name": workflow.name,
        "version": workflow.version,
        "versions": [each.version for each in all_workflows() if each.name == name],
        "module": workflow.__module__,
        "file": definition.source_file,
        "payload": _type(definition.payload_type),
        "output": _type(definition.return_type),
        "max_steps": options.max_steps,
        "concurrency": options.concurrency,
        "creation_rate": options.creation_rate,
        "success_retention": options.success_retention_s,
        "error_retention": options.error_retention_s,
        "schedules": [f"{each.cron} {each.tz}" for each in options.schedules],
        "rollback": {"order": options.rollback.order, "on_error": options.rollback.on_error},
        "about": _about(workflow),
        "instances": None if counts is None else {str(status): count for status, count in counts.items()},
    }


@workflows.command()
@addressed.workflow_argument
@click.argument("params", type=from_json, required=False)
@click.option("--id", "instance_id", help="The instance's id; a fresh UUID by default.")
@click.option("--wait", type=click.FloatRange(min=0), help="Seconds to wait for the creation rate.")
@answering(lambda document: click.echo(f"{document['workflow']} {document['id']}"))
def trigger(name: str, params: Any, instance_id: str | None, wait: float | None) -> Document:
    """Create an instance of workflow NAME with PARAMS, which are JSON.

    Where more are created than the limits allow it is refused (rate_limited), or waits.
    """
    from orchestrator.cli.registered import by_name

    if instance_id == addressed.LATEST:
        raise click.BadParameter(
            "`latest` stands for the newest instance; choose another id", param_hint="--id"
        )
    workflow = by_name(name)
    instance = workflow.create(params, id=instance_id, wait=wait)
    return {"workflow": workflow.name, "version": workflow.version, "id": instance.id}


@workflows.command()
@addressed.workflow_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@answering(lambda document: click.echo(f"deleted {document['workflow']}: {document['deleted']} instances"))
def delete(name: str, yes: bool) -> Document:
    """Delete every instance of workflow NAME, running or not, and its registration; nothing is rolled back.

    A worker that still serves the workflow registers it again when it starts.
    """
    workflow = addressed.workflow(name)
    if not yes:
        there = sum(workflow.count().values())
        _confirm(f"Delete the {there} instances of workflow {name}?")
    return {"workflow": name, "deleted": workflow.delete_all()}


def _confirm(question: str) -> None:
    """Go on if the answer is yes. Raises ``Abort``, and ``UsageError`` where there is nobody to answer."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)
        raise click.UsageError("nobody is there to answer: give --yes") from None
    if not agreed:
        raise click.Abort


def _about(workflow: Workflow) -> str:
    return inspect.getdoc(workflow.fn) or ""


def _type(annotation: Any) -> str | None:
    """An annotation as one reads it in code; ``None`` where there is none."""
    if annotation is Any:
        return None
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
