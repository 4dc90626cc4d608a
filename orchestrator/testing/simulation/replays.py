"""Executions rebuilt cold from a record, and the check that they are what the live ones came to.

Owns: the rebuilding (as ``engine.turning.loading`` does it from rows) and the comparison. Does not own: turns.
"""

from __future__ import annotations

from typing import NoReturn

from orchestrator.errors import NonDeterminismError
from orchestrator.testing.simulation.storage import Record
from orchestrator.workflow import codec
from orchestrator.workflow.deciding.holding import Held
from orchestrator.workflow.execution import Execution
from orchestrator.workflow.language.commands import CancelStep, Command, Complete, Fail
from orchestrator.workflow.replay import Replay
from orchestrator.workflow.status import Status


def build(record: Record) -> Execution:
    """Replay the whole history with today's code. Raises what ``Replay.feed`` raises.

    While compensation goes on, code that no longer fits is replayed as far as it does (semantics §5.5).
    """
    replay = Replay(record.definition, record.origin())
    try:
        replay.feed(record.history())
    except BaseException as error:
        if record.ending is None or not isinstance(error, NonDeterminismError):
            replay.discard()
            raise
        replay.ended = True
        replay.pending.clear()
    return _execution(record, replay)


def build_held(record: Record) -> Execution:
    """The state of the instance without its code: for verbs, and to record what ended while it is blocked."""
    return _execution(record, Held(record.definition, record.origin()))


def _execution(record: Record, replay: Replay) -> Execution:
    execution = Execution(
        record.id,
        record.definition.name,
        record.definition.version,
        record.run,
        record.status,
        record.seq,
        record.alarm_at,
        replay,
        record.started_at,
        inbox=list(record.inbox),
        ending=record.ending,
        blocked=record.blocked,
        state_bytes=record.state_bytes,
    )
    for row in record.in_order():
        execution.keep(row.copy())
    return execution


def compare(record: Record, live: Execution) -> None:
    """Replay the record cold, and raise ``NonDeterminismError`` where that differs from what the code did live.

    The commands, the open calls and the result must be the same; arguments are not compared, since they are read
    only where a step first starts.
    """
    replay = Replay(record.definition, record.origin())
    try:
        replay.feed(
            fact for fact in record.history() if record.ended_seq is None or fact.seq < record.ended_seq
        )
        if record.ended_seq is None:
            _compare_calls(live.replay, replay)
        else:
            _compare_end(record, replay)
    except NonDeterminismError as error:
        text = f"Replayed from its record, workflow {record.definition.name!r} (instance {record.name_id!r}) does not "
        hint = (
            "Take time, chance and the outside world from steps, step.now(), step.uuid() and step.random()."
        )
        raise NonDeterminismError(
            f"{text}do what it did before: {error.message} {hint}", error.expected, error.came
        ) from error
    finally:
        replay.discard()


def _compare_calls(live: Replay, cold: Replay) -> None:
    was, now = [_named(c) for c in live.pending], [_named(c) for c in cold.pending]
    if was != now:
        _differ(", ".join(was) or "nothing more", ", ".join(now) or "nothing more")
    for key in {**live.calls, **cold.calls}:
        there, here = live.calls.get(key), cold.calls.get(key)
        if there is None or here is None:
            _differ(f"step {key!r} {'open' if there else 'not open'}", f"{'open' if here else 'not open'}")
        if there.config != here.config:
            _differ(f"step {key!r} with {there.config}", f"{here.config}")


def _compare_end(record: Record, cold: Replay) -> None:
    last = cold.pending[-1] if cold.pending else None
    if record.status is Status.COMPLETE:
        if not isinstance(last, Complete):
            _differ("the end of the workflow", _named(last) if last is not None else "nothing")
        if last.output != record.output:
            _differ(f"the result {record.output:.200}", f"the result {last.output:.200}")
    elif isinstance(last, Complete) and "errored" in (record.status.value, record.ending):
        _differ("a failure", "the end of the workflow")
    elif isinstance(last, Fail) and record.status is Status.ERRORED:
        was, now = codec.error_info(record.error or ""), codec.error_info(last.error)
        if was.name != now.name and was.name not in ("PayloadTooLarge",):
            _differ(f"the failure {was}", f"the failure {now}")


def _differ(expected: str, came: str) -> NoReturn:
    raise NonDeterminismError(f"it had come to {expected}, and now came to {came}.", expected, came)


def _named(command: Command) -> str:
    if isinstance(command, Complete):
        return "the end of the workflow"
    if isinstance(command, Fail):
        return f"the failure of the workflow ({codec.error_info(command.error)})"
    verb = "cancellation" if isinstance(command, CancelStep) else "start"
    return f"the {verb} of {command.key!r}"
