"""What a turn does for steps that wait: due timers ring, events reach their waiters.

Owns: the order of what is due; the rule which waiter gets which event (protocols §9): waiters of a type are served
first come, first served, each gets the first event that was received before its due time, however late that is found
out; and the refusal of code that waits for no step. Does not own: how a step ends or is handed out again (``turn``).
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from orchestrator.errors import EventTimeout, NonDeterminismError
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import children
from orchestrator.workflow.history import InboxEvent, StepRow
from orchestrator.workflow.language.commands import INVOKE, SLEEP, WAIT
from orchestrator.workflow.language.config import WaitConfig

if TYPE_CHECKING:
    from orchestrator.workflow.deciding.turn import Turn
    from orchestrator.workflow.execution import Execution


def settle(turn: Turn) -> None:
    """Everything that is due, by due time, then events by number, until nothing is left to settle.

    Where due timers take the whole budget, one event is delivered all the same: code that sleeps for no time in an
    endless loop must not keep it waiting for ever.
    """
    execution, now = turn.execution, turn.now
    heap = turn.due = [
        (due, execution.open[key].started_seq, key) for key, due in execution.due.items() if due <= now
    ]
    heapq.heapify(heap)
    rang = False
    while not turn.spent:
        if heap:
            rang = True
            due, _, key = heapq.heappop(heap)
            if execution.due.get(key) == due:
                _ring(turn, execution.open[key])
        elif not _deliver_one(turn):
            return
    if rang and execution.replay.idle:
        _deliver_one(turn)
    turn.writes.again = True


def check(turn: Turn) -> None:
    """Refuse code that is idle with no step open: no fact will ever wake it. Raises ``NonDeterminismError``."""
    execution, writes = turn.execution, turn.writes
    unfinished = writes.again or writes.left or not execution.replay.idle or execution.replay.pending
    if not (execution.open or unfinished or execution.replay.ended or execution.ending is not None):
        raise NonDeterminismError(
            "The workflow's code waits for something that is no step (such as a future, or an asyncio.Event "
            "that nobody sets), so nothing will ever wake it. Wait for a step instead."
        )


def _ring(turn: Turn, row: StepRow) -> None:
    if row.status == "pending":
        turn.hand(row)
    elif row.kind == SLEEP:
        turn.finish(row, error=row.error)
    elif row.kind == INVOKE:
        children.time_out(turn, row)
    elif row.kind == WAIT and not _is_served(turn.execution, row):
        wait = WaitConfig.from_json(row.config or "")
        text = f"no event of type {wait.type!r} came within {wait.timeout_s:g} s for {row.key!r}"
        turn.finish(row, error=codec.encode_error(EventTimeout(text)))


def _is_served(execution: Execution, row: StepRow) -> bool:
    """Whether an event that waits in the inbox is for this waiter."""
    return bool(execution.inbox) and any(
        waiter is row for waiter, _ in _matches(execution.open.values(), execution.inbox)
    )


def _deliver_one(turn: Turn) -> bool:
    execution = turn.execution
    if not execution.inbox or execution.replay.ended:
        return False
    row, event = next(_matches(execution.open.values(), execution.inbox), (None, None))
    if row is None or event is None:
        return False
    execution.inbox.remove(event)
    turn.writes.consumed.append(event.number)
    turn.finish(row, output=_received(event))
    return True


def _matches(rows: Iterable[StepRow], inbox: Iterable[InboxEvent]) -> Iterator[tuple[StepRow, InboxEvent]]:
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


def _received(event: InboxEvent) -> str:
    """The output of a wait: the event, with its payload as the sender's own text."""
    head = json.dumps({"type": event.type, "timestamp": event.received_at})
    return f'{head[:-1]}, "payload": {event.payload}}}'
