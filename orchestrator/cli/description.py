"""Instances for people: tables and lines.

Owns: how an instance, a list of them and a lifecycle event are written in a terminal. Does not own: the values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.answers import Document, printable, shown
from orchestrator.client.records import Attempt, AuditRecord, StepRecord

if TYPE_CHECKING:
    from rich.table import Table

FIELDS = ("workflow", "id", "status", "output", "error", "rollback", "blocked")
UNFOLDED = 10_000
"""Columns of what is no terminal."""
OPEN = frozenset({"handed", "running", "pending", "waiting", "cancelling"})


def columns(*names: str) -> Table:
    """An empty table without frame, as all commands print it."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, header_style="bold", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Write a table as wide as the terminal; in a pipe or a file nothing is folded."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNFOLDED
    console.print(table)


def render_description(document: Document) -> None:
    """One instance: its fields, its steps, every failed attempt below its step, and what operators did."""
    for field in FIELDS:
        value = document[field]
        if value is not None:
            click.echo(f"{field:10}{printable(value) if isinstance(value, str) else _field(value)}")
    _render_steps(document["steps"])
    _render_audit(document["audit"])


def _render_audit(audit: list[AuditRecord]) -> None:
    if not audit:
        return
    click.echo()
    table = columns("verb", "at", "by", "detail")
    for each in audit:
        detail = shown(each.detail) if each.detail else ""
        table.add_row(each.verb, moment(each.at), printable(each.by), detail)
    print_table(table)


def _render_steps(steps: list[StepRecord]) -> None:
    if not steps:
        return
    click.echo()
    table = columns("step", "kind", "status", "attempts", "started", "took", "result")
    for step in steps:
        table.add_row(
            _name(step), step.kind, step.status, str(len(step.attempts) or ""), _clock(step.started_at),
            _took(step.started_at, step.finished_at), _result(step),
        )  # fmt: skip
        for line in _failures(step):
            table.add_row("", "", "", "", "", "", line)
    print_table(table)


def render_list(document: Document) -> None:
    """A page of instances, and how to get the next."""
    table = columns("id", "status", "version", "created", "ended")
    for each in document["instances"]:
        table.add_row(
            each["id"],
            each["status"],
            each["version"],
            moment(each["created_at"]),
            moment(each["ended_at"]),
        )
    print_table(table)
    if document["cursor"] is not None:
        click.echo(f"more: --cursor {document['cursor']}")


def render_event(event: Any) -> None:
    """A lifecycle event on one line."""
    words = [moment(event.timestamp), f"{event.event_id:>6}", event.type]
    if event.step_name is not None:
        words.append(event.step_name if event.count in (None, 1) else f"{event.step_name} ({event.count})")
    if event.attempt is not None:
        words.append(f"attempt {event.attempt}")
    if event.event_type is not None:
        words.append(f"type {event.event_type}")
    if event.error is not None:
        words.append(printable(str(event.error)).replace("\n", "\\n"))
    if event.retry_delay is not None:
        words.append(f"again in {span(event.retry_delay)}")
    if event.output is not None:
        words.append(shown(event.output))
    click.echo("  ".join(words))


def _field(value: Any) -> str:
    """``name: message`` of an error, the JSON of anything else."""
    is_error = hasattr(value, "name") and hasattr(value, "message")
    return printable(str(value)) if is_error else shown(value)


def _name(step: StepRecord) -> str:
    return step.name if step.count == 1 else f"{step.name} ({step.count})"


def _result(step: StepRecord) -> str:
    if step.error is not None:
        return printable(str(step.error))
    if step.status in OPEN:
        return _awaited(step)
    return "" if step.output is None else shown(step.output)


def _awaited(step: StepRecord) -> str:
    """What an open step waits for, as far as its record says."""
    config = step.config
    if step.kind == "sleep":
        return _until(step)
    if step.kind == "wait":
        return f"for an event of type {config['type']}, {span(config['timeout_s'])} at most"
    if step.kind == "invoke":
        return f"for the child {config['workflow']} {config['id']}"
    if step.status == "pending":
        return "for its next attempt"
    return ""


def _until(step: StepRecord) -> str:
    """When a sleep is over, if no pause puts it off."""
    config, end = step.config, step.started_at
    if "duration_s" in config:
        end += timedelta(seconds=config["duration_s"])
    elif "until" in config:
        end = datetime.fromtimestamp(config["until"], UTC)
    return f"until {moment(end)}"


def _failures(step: StepRecord) -> Iterator[str]:
    for attempt in step.attempts:
        if attempt.error is not None and (attempt.error != step.error or len(step.attempts) > 1):
            yield f"attempt {attempt.number}: {printable(str(attempt.error))}{_again(attempt)}"


def _again(attempt: Attempt) -> str:
    return "" if attempt.retry_delay is None else f"; again after {span(attempt.retry_delay)}"


def span(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of, as it may be written in code."""
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds and seconds % length == 0:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds:g} s"


def moment(at: datetime | None) -> str:
    return "" if at is None else at.astimezone().isoformat(sep=" ", timespec="seconds")


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S")


def _took(start: datetime, end: datetime | None) -> str:
    return "" if end is None else f"{(end - start).total_seconds():.3g} s"
