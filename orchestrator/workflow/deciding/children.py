"""Children of an instance: starting them, taking their ends, letting go of them, undoing what they did.

Owns: what ``step.invoke`` writes and what a child's end means to its parent; when a chain of compensations waits for
children, and which of them are links of it; what a parent's state means to a child. Pure: what is read of the others
comes in as data (``kin``). Does not own: storing and reading them (``store``), nor the hints that make it quick.

A turn writes rows of its own instance only, beside the creation of a child. Everything else is read: a parent sees how
its children stand when it is woken, and a child sees that its parent lets go of it. ``Writes.hints`` names those who
should look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from orchestrator.errors import (
    InstanceExists,
    InstanceNotFound,
    RollbackStatus,
    StepFailed,
    StepTimeout,
    WorkflowTerminated,
)
from orchestrator.workflow import codec, saga
from orchestrator.workflow.history import FINAL, StepRow
from orchestrator.workflow.kin import ChildState, NewChild, ParentState, child_id
from orchestrator.workflow.language.commands import INVOKE, ROLLBACK
from orchestrator.workflow.language.invocation import Invocation, InvokeConfig
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.workflow.deciding.turn import Turn
    from orchestrator.workflow.execution import ChildEnded, Execution

LOOK_S = 30.0
"""How often a parent looks at its children, should every hint of theirs be lost."""
RUNG_S = 2.0


# -- the parent, while its code runs -------------------------------------------------------------------------


def start(turn: Turn, row: StepRow, wanted: Invocation) -> None:
    """Create the child with this turn. One that cannot be fails its step: the row is due at once and says why."""
    execution, origin = turn.execution, turn.execution.replay.origin
    definition, options = wanted.definition, wanted.definition.options
    child = child_id(execution.id, row.run, row.key)
    name_id = wanted.id or str(child)
    row.config = InvokeConfig(
        definition.name, definition.version, name_id, str(child), wanted.timeout_s
    ).to_json()
    row.error = wanted.refusal(origin.max_payload_bytes)
    if row.error is not None:
        row.due_at = turn.now
        return
    row.has_rollback = True
    row.due_at = None if wanted.timeout_s is None else turn.now + wanted.timeout_s
    turn.writes.created_at = turn.now
    success_s, error_s = options.success_retention_s, options.error_retention_s
    turn.writes.children.append(
        NewChild(
            child,
            row.key,
            definition.name,
            definition.version,
            name_id,
            wanted.params,
            min(origin.success_retention_s if success_s is None else success_s, origin.retention_limit_s),
            min(origin.error_retention_s if error_s is None else error_s, origin.retention_limit_s),
        )
    )


def take(turn: Turn, ended: ChildEnded) -> None:
    """A child has ended, or there is none: so does the step that awaits it. Only the first end that is seen counts."""
    row, child = turn.execution.open.get(ended.key), ended.child
    if row is None or row.kind != INVOKE or _child_of(turn.execution, row) != child.id:
        return
    config = InvokeConfig.from_json(row.config or "")
    if child.status is None:
        turn.finish(row, error=codec.encode_error(_missing(config, child)))
    elif child.status == Status.COMPLETE:
        turn.finish(row, output=child.output)
    elif child.status == Status.ERRORED and child.error is not None:
        turn.finish(row, error=child.error)
    elif child.status in FINISHED:
        rollback = None if child.rollback is None else RollbackStatus.of(codec.decode(child.rollback))
        turn.finish(row, error=codec.encode_error(WorkflowTerminated(config.id, rollback)))


def time_out(turn: Turn, row: StepRow) -> None:
    """The step has waited long enough, or its child could not be created: it fails, and a child is let go of."""
    error = row.error
    if error is None:
        config = InvokeConfig.from_json(row.config or "")
        text = (
            f"child {config.id!r} of workflow {config.workflow!r} took over {config.timeout_s or 0:g} seconds"
        )
        error = codec.encode_error(StepTimeout(text))
        let_go(turn, row)
    turn.finish(row, error=error)


def let_go(turn: Turn, row: StepRow) -> None:
    """Nobody awaits the child of ``row`` any more. One that this very turn would have created is not created; every
    other is told to look: it terminates itself."""
    child = _child_of(turn.execution, row)
    created = [each for each in turn.writes.children if each.id != child]
    if len(created) == len(turn.writes.children):
        turn.writes.hints.append(child)
    turn.writes.children = created


def is_watching(execution: Execution) -> bool:
    """Whether there may be children that this instance must look at now and then."""
    return bool(execution.awaited) or (execution.ending is not None and bool(execution.invoked))


def ends(execution: Execution, states: Iterable[ChildState]) -> Iterator[tuple[str, ChildState]]:
    """Those of ``states`` that have ended and are awaited, with the step that awaits each, in their order."""
    over = [state for state in states if state.is_over]
    steps = {_child_of(execution, row): key for key, row in execution.awaited.items()} if over else {}
    for state in over:
        if state.id in steps:
            yield steps[state.id], state


def _missing(config: InvokeConfig, child: ChildState) -> Exception:
    if child.is_taken:
        text = f"there is another instance {config.id!r} of workflow {config.workflow!r} already"
        return InstanceExists(config.id, text)
    text = f"child {config.id!r} of workflow {config.workflow!r} was deleted while it was awaited"
    return InstanceNotFound(config.id, text)


def _child_of(execution: Execution, row: StepRow) -> UUID:
    return child_id(execution.id, row.run, row.key)


# -- the parent, while it compensates ------------------------------------------------------------------------


def have_stopped(turn: Turn) -> bool:
    """Whether the code of every child has stopped, as bodies must have before the chain begins. A child that has, and
    has anything to undo, then waits for its own place in the chain. Asks for a reading if there was none yet."""
    execution = turn.execution
    if not execution.invoked:
        return True
    if execution.children is None:
        turn.writes.reads_relatives = True
        return False
    going = [child.id for _, child in _known(execution) if not child.has_stopped]
    if going and _is_rung(turn):
        turn.writes.hints += going
    return not going


def links(execution: Execution) -> Iterable[StepRow]:
    """The steps that the chain may have to undo. An ``invoke`` is one of them only if its child has something to undo:
    otherwise a plain failure would come to be shown as a rollback."""
    if not execution.invoked:
        return execution.forward.values()
    states = dict(_known(execution))
    return [
        row
        for row in execution.forward.values()
        if row.kind != INVOKE or (row.key in states and _is_link(row, states[row.key]))
    ]


def begin_undoing(turn: Turn, forward: StepRow, handler: StepRow) -> None:
    """The chain has come to a child: its row waits, and the child is told to look."""
    handler.status, handler.config = "waiting", forward.config
    turn.write(handler)
    turn.writes.hints.append(_child_of(turn.execution, forward))


def end_undoing(turn: Turn) -> None:
    """End the links whose children have been undone; those that are not are told again when this turn was woken."""
    execution = turn.execution
    if not execution.invoked or execution.children is None:
        return
    states = dict(_known(execution))
    waiting = [row for row in execution.open.values() if row.kind == ROLLBACK and row.status == "waiting"]
    for handler in waiting:
        forward = execution.forward[saga.forward_key(handler.key)]
        child = states.get(forward.key)
        if child is None or _is_undone(forward, child):
            error = _rollback_error(forward, child)
            turn.finish(handler, output="null" if error is None else None, error=error)
        elif _is_rung(turn):
            turn.writes.hints.append(child.id)


def _is_rung(turn: Turn) -> bool:
    """Whether it is by its alarm that this turn looks at the children, not because one of them told it to. Then what
    they were told may have been lost, and they are told again. An alarm is moved a second on before it rings."""
    return turn.woken and turn.execution.alarm_at <= turn.now + RUNG_S


def _known(execution: Execution) -> Iterator[tuple[str, ChildState]]:
    """The children there are, by the step that started each."""
    states = execution.children or {}
    for key, row in execution.invoked.items():
        state = states.get(_child_of(execution, row))
        if state is not None:
            yield key, state


def _is_link(row: StepRow, child: ChildState) -> bool:
    """Whether the chain has to see to this child. What failed has undone itself; what somebody else terminated was
    meant to stay as it is; what its parent had terminated by a time-out or a cancellation has yet to be undone."""
    if not child.undoable or child.status == Status.ERRORED:
        return False
    return child.status != Status.TERMINATED or (child.rollback is None and _is_let_go(row.status, row.error))


def _is_undone(row: StepRow, child: ChildState) -> bool:
    if child.status == Status.TERMINATED:
        return child.rollback is not None or not _is_link(row, child)
    return child.status is None or child.status == Status.ERRORED


def _rollback_error(row: StepRow, child: ChildState | None) -> str | None:
    """Why a link failed: the rollback of its child did."""
    if child is None or child.rollback is None:
        return None
    rollback = RollbackStatus.of(codec.decode(child.rollback))
    if rollback.outcome != "failed":
        return None
    config = InvokeConfig.from_json(row.config or "")
    text = f"the rollback of child {config.id!r} of workflow {config.workflow!r} failed: {rollback.error}"
    name = rollback.error.name if rollback.error is not None else StepFailed.__name__
    return codec.encode_error(StepFailed(name, text))


def part(turn: Turn) -> None:
    """The instance ends: its parent waits for that, and children that it has told to stop wait for nothing more."""
    execution, hints = turn.execution, turn.writes.hints
    if execution.parent_id is not None:
        hints.append(execution.parent_id)
    hints += [child.id for _, child in _known(execution) if not child.is_over]


# -- the child -----------------------------------------------------------------------------------------------


class Word(StrEnum):
    """What a parent's state asks of a child."""

    TERMINATE = "terminate"
    ROLL_BACK = "roll_back"
    """Terminate, and undo what was done when the parent's chain comes to it."""
    UNDO = "undo"
    """Undo what was done: the child has ended."""


def word(status: str, ending: str | None, parent: ParentState) -> Word | None:
    """What ``parent`` asks of a child that stands at ``status`` and ``ending``, if anything."""
    if status in FINISHED:
        is_wanted = parent.handler == "waiting" and not parent.has_undone and status != Status.ERRORED
        return Word.UNDO if is_wanted else None
    if ending is not None:
        return None
    if parent.is_over:
        return Word.TERMINATE
    if parent.ending is not None:
        return Word.ROLL_BACK
    return Word.TERMINATE if _is_let_go(parent.step or "", parent.step_error) else None


def is_held(turn: Turn) -> bool:
    """Whether this child has stopped and its parent's chain has not come to it yet: it is undone, and its own rollback
    goes on where it had failed, in its place. Asks for a reading if there was none yet."""
    execution, parent = turn.execution, turn.execution.parent
    if execution.parent_id is None or execution.ending != Status.TERMINATED or _is_undoing(execution):
        return False
    if parent is None:
        turn.writes.reads_relatives = True
        return True
    return not parent.is_over and parent.ending is not None and parent.handler is None


def is_forsaken(execution: Execution) -> bool:
    """Whether this child was to be undone by a chain that will never come to it: another link has failed for good."""
    parent = execution.parent
    if parent is None or not parent.is_over or execution.ending != Status.TERMINATED or execution.handlers:
        return False
    # A parent that returned in the run of this child had no chain: somebody else asked for this rollback.
    return parent.status != Status.COMPLETE or parent.step is None


def is_undone_by_parent(execution: Execution) -> bool:
    """Whether the parent's chain has come to this child, and waits for a word of how its rollback ended."""
    return execution.parent is not None and execution.parent.handler == "waiting"


def _is_undoing(execution: Execution) -> bool:
    return any(row.status not in FINAL for row in execution.handlers.values())


def _is_let_go(step: str, error: str | None) -> bool:
    """Whether a step was given up by its own instance while its child went on."""
    if step in ("cancelled", "abandoned"):
        return True
    return step == "failed" and error is not None and codec.error_info(error).name == StepTimeout.__name__
