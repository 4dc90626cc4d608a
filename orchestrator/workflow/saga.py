"""What to compensate, and in which order.

Owns: eligibility, order, and when a chain is over. Does not own: running handlers (they are steps like any
other), nor when a workflow fails (``turn``). Rules: semantics §5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.workflow.history import FINAL, StepRow
from orchestrator.workflow.language.config import RollbackPolicy

SUFFIX = ":rollback"


def handler_key(key: str) -> str:
    """The key of the compensation of step ``key``."""
    return key + SUFFIX


def forward_key(key: str) -> str:
    """The step that the compensation ``key`` undoes."""
    return key.removesuffix(SUFFIX)


def eligible(rows: Iterable[StepRow]) -> list[StepRow]:
    """Steps with a handler whose body may have run, last started first."""
    chosen = [row for row in rows if row.has_rollback and row.has_begun]
    return sorted(chosen, key=lambda row: row.started_seq, reverse=True)


@dataclass(slots=True, frozen=True)
class Chain:
    """Where a chain stands: handlers to start now, whether it is over, and how it ended."""

    start: tuple[StepRow, ...] = ()
    over: bool = False
    failed: tuple[StepRow, ...] = ()


def advance(forward: Iterable[StepRow], handlers: Mapping[str, StepRow], policy: RollbackPolicy) -> Chain:
    """Decide what the chain does next.

    ``handlers`` holds the compensation rows there are, by their own key. ``sequential`` starts one at a time,
    ``parallel`` all at once; ``on_error="stop"`` starts none after the first that failed for good, but lets
    those finish that run.
    """
    order = eligible(forward)
    failed = [row for row in handlers.values() if row.status == "failed"]
    failed.sort(key=lambda row: row.finished_seq or 0)
    running = any(row.status not in FINAL for row in handlers.values())
    waiting = [row for row in order if handler_key(row.key) not in handlers]
    if failed and policy.on_error == "stop":
        waiting = []
    if running:
        return Chain(start=tuple(waiting) if policy.order == "parallel" else ())
    if not waiting:
        return Chain(over=True, failed=tuple(failed))
    return Chain(start=tuple(waiting) if policy.order == "parallel" else (waiting[0],))
