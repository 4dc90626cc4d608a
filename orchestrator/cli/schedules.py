"""``orchestrator schedules …``: what creates instances by itself.

Owns: the commands. Does not own what they do (``client.schedules``). They need no code of the workflow, only Postgres.
"""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, answering, shown
from orchestrator.cli.description import columns, print_table


@click.group()
def schedules() -> None:
    """The schedules of workflows, as the worker that was started last has entered them."""


def _render_list(document: Document) -> None:
    if not document["schedules"]:
        click.echo("There are none. A worker enters those of its workflows when it starts.")
        return
    table = columns("workflow", "cron", "tz", "next", "last", "params")
    for each in document["schedules"]:
        params = "" if each.params is None else shown(each.params)
        coming = "paused" if each.paused else _moment(each.next_at)
        table.add_row(each.workflow, each.cron, each.tz, coming, _moment(each.last_at), params)
    print_table(table)


def _moment(at: Any) -> str:
    return "never" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def _render_one(document: Document) -> None:
    one = document["schedule"]
    state = "is paused" if one.paused else f"fires next at {_moment(one.next_at)}"
    click.echo(f"{one.workflow}: {one.cron} ({one.tz}) {state}")


@schedules.command("list")
@click.argument("name", required=False, shell_complete=addressed.names)
@answering(_render_list)
def list_(name: str | None) -> Document:
    """The schedules of workflow NAME, or of all."""
    from orchestrator.client.orchestrator import current
    from orchestrator.client.schedules import listed

    return {"schedules": listed(current(), name)}


def _one(command: Any) -> Any:
    """The arguments that name one schedule."""
    zone = click.option("--tz", help="Its time zone, where several have the same expression.")
    return addressed.workflow_argument(click.argument("cron")(zone(command)))


@schedules.command()
@_one
@answering(_render_one)
def pause(name: str, cron: str, tz: str | None) -> Document:
    """Let the schedule CRON of workflow NAME fire no more, until it is resumed."""
    return _turn(name, cron, tz, is_paused=True)


@schedules.command()
@_one
@answering(_render_one)
def resume(name: str, cron: str, tz: str | None) -> Document:
    """Let the schedule CRON of workflow NAME fire again, from its next moment on."""
    return _turn(name, cron, tz, is_paused=False)


def _turn(name: str, cron: str, tz: str | None, *, is_paused: bool) -> Document:
    from orchestrator.client.orchestrator import current
    from orchestrator.client.schedules import turn

    return {"schedule": turn(current(), name, cron, tz, is_paused=is_paused)}
