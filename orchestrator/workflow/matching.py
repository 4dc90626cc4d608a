"""Which waiter gets which event.

Owns: the rule (protocols §9): waiters of a type are served first come, first served; each gets the first event that
was received before its due time, however late that is found out. Does not own: waiting, timing out or delivering
(``turn``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from orchestrator.ports import FOREVER
from orchestrator.workflow.history import InboxEvent, StepRow
from orchestrator.workflow.language.commands import WAIT
from orchestrator.workflow.language.config import WaitConfig


def matches(rows: Iterable[StepRow], inbox: Iterable[InboxEvent]) -> Iterator[tuple[StepRow, InboxEvent]]:
    """Pairs of a waiter and its event, in the order of the events (``inbox`` is in order of number)."""
    lines: dict[str, list[StepRow]] = {}
    for row in rows:
        if row.kind == WAIT and row.status == "waiting":
            lines.setdefault(WaitConfig.from_json(row.config or "").type, []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: row.started_seq)
    for event in inbox:
        line = lines.get(event.type, [])
        for place, row in enumerate(line):
            if event.received_at < (row.due_at or FOREVER):
                del line[place]
                yield row, event
                break


def received(event: InboxEvent) -> str:
    """The output of a wait: the event, with its payload as the sender's own text."""
    head = json.dumps({"type": event.type, "timestamp": event.received_at})
    return f'{head[:-1]}, "payload": {event.payload}}}'
