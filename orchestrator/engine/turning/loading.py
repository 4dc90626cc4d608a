"""From rows to executions: cold replays, and bringing a live one up to date.

Owns: the one place where history is fed on loading. Does not own: the queries (``store.histories``) or the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import NonDeterminismError
from orchestrator.store.histories import Known, Stored
from orchestrator.workflow import codec
from orchestrator.workflow.deciding.holding import Held
from orchestrator.workflow.execution import Execution
from orchestrator.workflow.history import Began, facts
from orchestrator.workflow.language.definition import Definition, define
from orchestrator.workflow.replay import Origin, Replay
from orchestrator.workflow.status import Status


@dataclass(slots=True, frozen=True)
class Limits:
    """What a deployment allows an instance."""

    max_steps: int = 25_000
    max_payload_bytes: int = codec.MIB
    max_state_bytes: int | None = None
    success_retention_s: float = 7 * 86_400.0
    error_retention_s: float = 7 * 86_400.0
    retention_limit_s: float = 30 * 86_400.0


def build(stored: Stored, definition: Definition, limits: Limits | None = None) -> Execution:
    """Replay the whole history of ``stored`` (which must hold all rows) with today's code.

    Raises what ``Replay.feed`` raises. While compensation goes on, code that no longer fits is replayed as far as
    it does: its missing handlers then fail the rollback by name (semantics §5.5).
    """
    execution = _execution(stored, Replay(definition, _origin(stored, definition, limits or Limits())))
    try:
        _feed(execution, stored, after=0)
    except BaseException as error:
        if stored.ending is None or not isinstance(error, NonDeterminismError):
            execution.replay.discard()
            raise
        execution.replay.ended = True
        execution.replay.pending.clear()  # what the new code asked for is none of the rollback's business
    _file(execution, stored)
    return execution


async def _nothing(event: object, step: object) -> None: ...


_WITHOUT_CODE = define(_nothing, name="without-code")
"""Stands for a definition that need not be known here."""


def build_held(stored: Stored, definition: Definition = _WITHOUT_CODE) -> Execution:
    """The state of ``stored`` without its code, none of which is run: to record what ended meanwhile, or to be told to
    end."""
    execution = _execution(stored, Held(definition, _origin(stored, definition, Limits())))
    _file(execution, stored)
    return execution


def advance(execution: Execution, stored: Stored) -> None:
    """Feed ``execution`` what was committed since its ``seq``; ``stored`` holds the steps it knew as open and
    those that started later. Raises what ``Replay.feed`` raises: then drop it."""
    _feed(execution, stored, after=execution.seq)
    execution.status = Status(stored.status)
    execution.seq = stored.seq
    execution.alarm_at = stored.alarm_at
    execution.started_at = stored.started_at
    execution.ending = stored.ending
    execution.blocked = stored.blocked
    execution.state_bytes = stored.state_bytes
    execution.parent_id = stored.parent_id
    if stored.parent is not None:
        execution.parent = stored.parent
    _file(execution, stored)


def known(execution: Execution) -> Known:
    """What ``execution`` holds, for asking only for the rest."""
    return Known(execution.id, execution.seq, list(execution.open))


def _feed(execution: Execution, stored: Stored, *, after: int) -> None:
    if stored.started_at is None:
        return
    history = facts(stored.rows, after=after, ended_seq=stored.ended_seq)
    if execution.started_at is None:
        history.insert(0, Began(0, stored.started_at))
    execution.replay.feed(history)  # at once: step.patched asks what is recorded


def _file(execution: Execution, stored: Stored) -> None:
    for row in sorted(stored.rows, key=lambda row: row.started_seq):
        execution.keep(row)
    execution.inbox = stored.inbox
    execution.started_at = stored.started_at


def _origin(stored: Stored, definition: Definition, limits: Limits) -> Origin:
    return Origin(
        stored.id,
        stored.name_id,
        stored.run,
        stored.params,
        stored.created_at,
        max_steps=min(limits.max_steps, definition.options.max_steps),
        max_payload_bytes=limits.max_payload_bytes,
        max_state_bytes=limits.max_state_bytes,
        seed=stored.seed,
        schedule=None if stored.schedule is None else (stored.schedule, stored.scheduled_at or 0.0),
        success_retention_s=limits.success_retention_s,
        error_retention_s=limits.error_retention_s,
        retention_limit_s=limits.retention_limit_s,
    )


def _execution(stored: Stored, replay: Replay) -> Execution:
    return Execution(
        id=stored.id,
        workflow=stored.workflow,
        version=stored.version,
        run=stored.run,
        status=Status(stored.status),
        seq=stored.seq,
        alarm_at=stored.alarm_at,
        replay=replay,
        ending=stored.ending,
        blocked=stored.blocked,
        state_bytes=stored.state_bytes,
        parent=stored.parent,
        parent_id=stored.parent_id,
    )
