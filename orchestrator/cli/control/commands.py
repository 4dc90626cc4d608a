"""``orchestrator control status | limits | reshard``.

Owns: the commands. Does not own what they do (``client.control``), nor how it is shown (``tables``).
"""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, answering
from orchestrator.cli.control import tables

DEFAULT = "default"
"""Instead of a number: as the definition or the settings say."""


@click.group()
def control() -> None:
    """Limits, queues, and who looks after them: how they stand, and changing them while everything runs."""


def _name_argument(command: Any) -> Any:
    return click.argument("name", required=False, shell_complete=addressed.names)(command)


@control.command()
@_name_argument
@answering(tables.status)
def status(name: str | None) -> Document:
    """How the control plane stands: slots, limits, workers, and each workflow (or NAME) with its queue."""
    from orchestrator.client.control.status import status as stands
    from orchestrator.client.orchestrator import current

    return {"status": stands(current(), None if name is None else _known(name))}


def _whole(text: str) -> float | str:
    """A whole number or ``default``: the type of such an option, for click."""
    return _read(text, int, "a whole number")


def _number(text: str) -> float | str:
    """A number or ``default``."""
    return _read(text, float, "a number")


def _read(text: str, kind: type[int] | type[float], what: str) -> float | str:
    try:
        return text if text == DEFAULT else kind(text)
    except ValueError:
        raise click.BadParameter(f"{text!r:.40} is neither {what} nor `{DEFAULT}`") from None


@control.command()
@_name_argument
@click.option(
    "--concurrency",
    type=_whole,
    metavar="NUMBER",
    help="Instances that run at once; 0: nothing starts any more.",
)
@click.option(
    "--creation-rate", type=_number, metavar="NUMBER", help="Instances per second that may be created."
)
@click.option(
    "--creation-burst", type=_number, metavar="NUMBER", help="How many may come at once after a pause."
)
@click.option(
    "--max-queued", type=_whole, metavar="NUMBER", help="Instances of one workflow that may wait for a slot."
)
@click.option("--clear", is_flag=True, help="Take back everything that was set here.")
@answering(tables.limits)
def limits(name: str | None, clear: bool, **given: Any) -> Document:
    """The limits of the account, or of workflow NAME; with options, set some of them.

    What is set holds at once, without any restart, until it is cleared: it wins over the definition and the settings.
    `default` instead of a number clears one.
    """
    from orchestrator.client.control import limits as verbs
    from orchestrator.client.orchestrator import current

    changed = {
        each: None if value == DEFAULT else value for each, value in given.items() if value is not None
    }
    if clear and changed:
        raise click.UsageError("--clear takes back all limits: give it alone")
    if clear:
        return {"limits": verbs.clear(current(), name)}
    if changed:
        return {"limits": verbs.set_limits(current(), name, **changed)}
    return {"limits": verbs.limits(current(), name)}


@control.command()
@_name_argument
@click.option("--shards", type=click.IntRange(min=1), help="Into how many shards.")
@click.option(
    "--coordinators",
    type=click.Choice(["one", "many"]),
    help="Let one worker coordinate the account (V1), or many (V2); every queue is cut anew for it.",
)
@answering(tables.reshard)
def reshard(name: str | None, shards: int | None, coordinators: str | None) -> Document:
    """Cut the queue of workflow NAME, or of every workflow, into another number of shards.

    New instances use the new cut at once; those queued before drain where they are. Nothing stops.
    """
    from orchestrator.client.control import layout
    from orchestrator.client.orchestrator import current

    if coordinators is not None:
        if name is not None:
            raise click.UsageError("--coordinators is of the whole account: give no NAME")
        if coordinators == "one" and shards not in (None, 1):
            raise click.UsageError("one coordinator has one shard of each workflow: give no --shards")
        return {"queues": layout.coordinate(current(), coordinators, shards)}
    if shards is None:
        raise click.UsageError("give --shards, or --coordinators")
    return {"queues": layout.reshard(current(), shards, name)}


def _known(name: str) -> str:
    """The name, if it may be one of a workflow. Raises ``InvalidName``."""
    return addressed.workflow(name).name
