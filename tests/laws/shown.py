"""Executions and writes as plain values that can be compared.

Owns: what counts as the same. A live execution may not know of claims, which are written without a turn; so who runs
an attempt, and since when, is left out, and ``running`` is shown as ``handed``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any

from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.replay import Replay

Shown = dict[str, Any]
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def row(each: StepRow) -> Shown:
    status = "handed" if each.status == "running" else each.status
    return asdict(replace(each, status=status, worker=None, claimed_at=None))


def replay(each: Replay) -> Shown:
    return {
        "pending": [_ADDRESS.sub("", repr(command))[:300] for command in each.pending],
        "now": each.now,
        "idle": each.idle,
        "ended": each.ended,
        "steps": each.steps,
        "calls": {key: (call.label, call.line, repr(call.args)) for key, call in each.calls.items()},
        "awaited": list(each._futures),
        "counts": each._counts,
        "order": each._loop._order,
    }


def execution(each: Execution) -> Shown:
    return {
        "status": each.status,
        "seq": each.seq,
        "alarm_at": each.alarm_at,
        "started_at": each.started_at,
        "ending": each.ending,
        "state_bytes": each.state_bytes,
        "inbox": each.inbox,
        "open": [row(step) for step in each.open.values()],
        "due": each.due,
        "forward": [row(step) for step in each.forward.values()],
        "handlers": [row(step) for step in each.handlers.values()],
        "replay": replay(each.replay),
    }


def writes(each: Writes) -> Shown:
    found = {name: getattr(each, name) for name in Writes.__slots__}
    found["steps"] = {key: row(step) for key, step in each.steps.items()}
    found["attempts"] = [attempt._replace(claimed_at=None) for attempt in each.attempts]
    found["cancelled"] = sorted(each.cancelled)
    return found
