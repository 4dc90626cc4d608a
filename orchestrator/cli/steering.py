"""``orchestrator instances …``: changing the course of one instance.

Owns: the commands. Does not own what they do (``client``).
"""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, answering, from_json
from orchestrator.client.instance import WorkflowInstance

KINDS = ("do", "sleep", "wait", "invoke")


def _standing(name: str, instance: WorkflowInstance) -> Document:
    return {"workflow": name, "id": instance.id, "status": instance.status().status.value}


def _render(document: Document) -> None:
    click.echo(f"{document['workflow']} {document['id']} is {document['status']}")


@click.command("send-event")
@addressed.instance_arguments
@click.option("--type", "event_type", required=True, help="The type that the workflow waits for.")
@click.option("--payload", type=from_json, help="JSON; null by default.")
@answering(lambda document: click.echo(f"sent {document['type']} to {document['workflow']} {document['id']}"))
def send_event(name: str, id: str, event_type: str, payload: Any) -> Document:
    """Send an event to instance ID of workflow NAME; it is kept until a wait of that type takes it."""
    instance = addressed.instance(name, id)
    instance.send_event(event_type, payload)
    return {"workflow": name, "id": instance.id, "type": event_type}


@click.command()
@addressed.instance_arguments
@answering(_render)
def pause(name: str, id: str) -> Document:
    """Pause instance ID of workflow NAME: steps that run end and are recorded, none is started."""
    instance = addressed.instance(name, id)
    instance.pause()
    return _standing(name, instance)


@click.command()
@addressed.instance_arguments
@answering(_render)
def resume(name: str, id: str) -> Document:
    """Let the paused instance ID of workflow NAME go on; its timers are put off by the time it was paused."""
    instance = addressed.instance(name, id)
    instance.resume()
    return _standing(name, instance)


@click.command()
@addressed.instance_arguments
@click.option("--rollback", is_flag=True, help="Run the compensations of what was done, first.")
@answering(_render)
def terminate(name: str, id: str, rollback: bool) -> Document:
    """Stop instance ID of workflow NAME; what its running steps return is not recorded."""
    instance = addressed.instance(name, id)
    instance.terminate(rollback)
    return _standing(name, instance)


@click.command()
@addressed.instance_arguments
@click.option(
    "--from-step-name", "from_step", help="Keep what started before this step; all is run anew if not given."
)
@click.option(
    "--from-step-count",
    "count",
    type=click.IntRange(min=1),
    help="Which step of that name; the first by default.",
)
@click.option("--from-step-type", "kind", type=click.Choice(KINDS), help="Its kind; do by default.")
@answering(_render)
def restart(name: str, id: str, from_step: str | None, count: int | None, kind: str | None) -> Document:
    """Run instance ID of workflow NAME again, with the same id and parameters.

    Its steps, timers and buffered events are forgotten: all of them, or those from one step on.
    """
    if from_step is None and (count is not None or kind is not None):
        raise click.UsageError(
            "--from-step-count and --from-step-type say more about --from-step-name: give it too"
        )
    instance = addressed.instance(name, id)
    instance.restart(from_step=from_step, count=count or 1, kind=kind or "do")
    return _standing(name, instance)


@click.command("retry-rollback")
@addressed.instance_arguments
@answering(_render)
def retry_rollback(name: str, id: str) -> Document:
    """Take up the failed rollback of instance ID of workflow NAME: what failed to undo its step runs once more, then
    what it never came to."""
    instance = addressed.instance(name, id)
    instance.retry_rollback()
    return _standing(name, instance)


@click.command("skip-rollback")
@addressed.instance_arguments
@click.argument("step")
@click.option(
    "--count", type=click.IntRange(min=1), default=1, show_default=True, help="Which step of that name."
)
@answering(_render)
def skip_rollback(name: str, id: str, step: str, count: int) -> Document:
    """Go on with the failed rollback of instance ID of workflow NAME without STEP: that is undone, or need not be.

    STEP is the name of a step, or its key, such as wait:approval:1.
    """
    instance = addressed.instance(name, id)
    instance.skip_rollback(step, count)
    return _standing(name, instance)


@click.command()
@addressed.instance_arguments
@answering(lambda document: click.echo(f"deleted {document['workflow']} {document['id']}"))
def delete(name: str, id: str) -> Document:
    """Delete instance ID of workflow NAME and all that is known of it, running or not; nothing is rolled back."""
    instance = addressed.instance(name, id)
    instance.delete()
    return {"workflow": name, "id": instance.id, "deleted": True}


COMMANDS = (send_event, pause, resume, terminate, restart, retry_rollback, skip_rollback, delete)
