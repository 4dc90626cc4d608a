"""The control plane for people: tables and lines.

Owns: how they are written. Does not own: the values (``client.control``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.answers import Document
from orchestrator.cli.description import columns, moment, print_table, span
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.client.control.limits import LimitsRecord
    from orchestrator.client.control.status import ControlStatus, GenerationRecord, WorkflowRecord


def limits(document: Document) -> None:
    """What holds, who says so, and who changed it last."""
    record: LimitsRecord = document["limits"]
    table = columns("limit", "value", "set by")
    for name, limit in record.limits.items():
        table.add_row(name, _number(limit.value), limit.source)
    print_table(table)
    if record.changed_at is not None:
        click.echo(f"last changed {moment(record.changed_at)} by {record.changed_by}")
    if not record.is_known:
        click.echo(f"No worker has registered a workflow {record.workflow!r}: is that its name?")


def reshard(document: Document) -> None:
    """The cuts that are used now."""
    if not document["queues"]:
        click.echo("There are no queues yet: a worker enters those of its workflows when it starts.")
        return
    table = columns("workflow", "generation", "shards")
    for each in document["queues"]:
        table.add_row(each.workflow, str(each.generation), str(each.shards))
    print_table(table)


def status(document: Document) -> None:
    """The account in some lines, then its workers, its workflows, and what drains."""
    record: ControlStatus = document["status"]
    for field, value in _account(record):
        click.echo(f"{field:14}{value}")
    _workers(record)
    _workflows(record.workflows)
    _draining(record.workflows)


def _account(record: ControlStatus) -> list[tuple[str, str]]:
    most = _number(record.limits.limits["concurrency"].value)
    granting = {None: "Redis is away", False: "none is granted: leases are being rebuilt", True: ""}[
        record.granting
    ]
    used = "?" if record.slots is None else f"{record.slots:,}"
    rates = record.limits.limits
    return [
        ("account", record.account),
        ("slots", f"{used} of {most}{f' ({granting})' if granting else ''}"),
        (
            "creation",
            f"{_number(rates['creation_rate'].value)}/s, {_number(rates['creation_burst'].value)} at once",
        ),
        ("coordinators", record.coordinators),
    ]


def _workers(record: ControlStatus) -> None:
    click.echo()
    if not record.workers:
        click.echo("No worker is alive.")
        return
    table = columns("worker", "pid", "queues", "since", "shards")
    for each in record.workers:
        table.add_row(
            each.hostname, str(each.pid), ", ".join(each.queues), moment(each.started_at), str(each.shards)
        )
    print_table(table)


def _workflows(workflows: Sequence[WorkflowRecord]) -> None:
    if not workflows:
        return
    click.echo()
    table = columns("workflow", "queued", "waits for", "slots", "waiting", "finished", "rate", "shards")
    for each in workflows:
        counts, limit = each.counts, each.limits.limits["concurrency"].value
        used = "?" if each.slots is None else f"{each.slots:,}"
        table.add_row(
            each.name,
            f"{counts[Status.QUEUED]:,}",
            span(round(each.queue_age)) if each.oldest_at is not None else "",
            used if limit is None else f"{used} of {_number(limit)}",
            f"{counts[Status.WAITING]:,}",
            f"{sum(counts[status] for status in FINISHED):,}",
            f"{_number(each.limits.limits['creation_rate'].value)}/s",
            " ← ".join(_cut(cut) for cut in reversed(each.generations)),
        )
    print_table(table)


def _cut(cut: GenerationRecord) -> str:
    return str(cut.shards) if cut.owned == cut.shards else f"{cut.shards} ({cut.owned} looked after)"


def _draining(workflows: Sequence[WorkflowRecord]) -> None:
    rows = [(each.name, cut) for each in workflows for cut in each.generations if cut.is_draining]
    if not rows:
        return
    click.echo()
    table = columns("draining", "generation", "shards", "queued", "oldest")
    for name, cut in rows:
        more = "+" if cut.is_more else ""
        oldest = "" if cut.oldest_at is None else moment(cut.oldest_at)
        table.add_row(name, str(cut.generation), str(cut.shards), f"{cut.waiting:,}{more}", oldest)
    print_table(table)


def _number(value: float | None) -> str:
    """A limit: a whole number by its thousands, a fraction as it is; ``none``."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"
