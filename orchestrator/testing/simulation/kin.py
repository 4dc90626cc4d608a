"""Children and parents among the records: what each is told of the other, as ``store.records.children`` reads it.

Owns: creating the children that a turn wants, and reading relatives. Does not own: what follows from what is read
(``workflow.deciding.children``).
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from orchestrator.errors import StepTimeout
from orchestrator.testing.simulation.storage import Record, Storage
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import children
from orchestrator.workflow.execution import ChildEnded, Execution, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import ChildState, ParentState, child_id
from orchestrator.workflow.language.commands import INVOKE
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.invocation import InvokeConfig
from orchestrator.workflow.status import Status

Find = Callable[[str, str], Definition]
"""The definition of that name and version. Raises ``UnknownWorkflow``."""


def create(storage: Storage, parent: Record, writes: Writes, find: Find, now: float) -> list[Record]:
    """The children that are created with this turn of their parent. An id that is taken creates none."""
    made: list[Record] = []
    for new in writes.children:
        taken = storage.get(new.id) is not None or storage.find(new.workflow, new.name_id) is not None
        if not taken:
            child = Record(new.id, new.name_id, find(new.workflow, new.version), new.params, now)
            child.parent_id, child.parent_key = parent.id, new.key
            child.state_bytes = len(new.params)
            storage.add(child)
            made.append(child)
    return made


def tell(storage: Storage, record: Record, execution: Execution) -> list[ChildEnded]:
    """Bring what an execution knows of its relatives up to date; what awaited children have come to, as arrivals."""
    execution.parent_id, execution.parent = record.parent_id, parent_of(storage, record)
    if record.ending is not None:
        kin = [each for each in storage if each.parent_id == record.id]
        execution.children = {each.id: _state(storage, each) for each in kin}
        return []
    if not execution.awaited:
        return []
    states = [_awaited(storage, row) for row in execution.awaited.values()]
    return [ChildEnded(key, child) for key, child in children.ends(execution, states)]


def parent_of(storage: Storage, record: Record) -> ParentState | None:
    """How the parent of a child stands; ``None`` for who has none."""
    if record.parent_id is None:
        return None
    parent, key = storage.get(record.parent_id), record.parent_key or ""
    if parent is None:
        return ParentState(record.parent_id, None, has_undone=record.rollback is not None)
    step, handler = parent.steps.get(key), parent.steps.get(f"{key}:rollback")
    if step is None or child_id(parent.id, step.run, key) != record.id:
        step = handler = None
    return ParentState(
        parent.id,
        parent.status,
        parent.ending,
        None if step is None else step.status,
        None if step is None else step.error,
        None if handler is None else handler.status,
        record.rollback is not None,
    )


def relatives(storage: Storage, record: Record) -> list[UUID]:
    """The parent, and every child: who should look when something was done to this instance from outside."""
    found = [each.id for each in storage if each.parent_id == record.id]
    return found if record.parent_id is None else [record.parent_id, *found]


def detach(storage: Storage, record: Record) -> None:
    """Make an instance that is restarted one of its own, if its parent has let go of it."""
    if record.parent_id is None:
        return
    parent = storage.get(record.parent_id)
    step = None if parent is None else parent.steps.get(record.parent_key or "")
    if (
        parent is None
        or step is None
        or parent.is_finished
        or parent.ending is not None
        or not _holds(step, record)
    ):
        record.parent_id = record.parent_key = None


def stand_alone(storage: Storage, record: Record) -> None:
    """Make an instance whose rollback is taken up again by itself one of its own, unless its parent's chain waits for
    it or has yet to come to it."""
    parent = None if record.parent_id is None else storage.get(record.parent_id)
    if parent is not None and not parent.is_finished and parent.ending is not None:
        handler = parent.steps.get(f"{record.parent_key}:rollback")
        if handler is None or handler.status == "waiting":
            return
    record.parent_id = record.parent_key = None


def _holds(step: StepRow, child: Record) -> bool:
    if InvokeConfig.from_json(step.config or "").instance != str(child.id):
        return False
    if step.status == "failed" and step.error is not None:
        return codec.error_info(step.error).name != StepTimeout.__name__
    return step.status in ("waiting", "done")


def _awaited(storage: Storage, row: StepRow) -> ChildState:
    config = InvokeConfig.from_json(row.config or "")
    child = storage.get(UUID(config.instance))
    if child is None:
        is_taken = storage.find(config.workflow, config.id) is not None
        return ChildState(UUID(config.instance), None, is_taken=is_taken)
    return _state(storage, child)


def _state(storage: Storage, child: Record) -> ChildState:
    return ChildState(
        child.id,
        child.status,
        child.ending,
        child.output if child.is_finished else None,
        child.error if child.is_finished else None,
        child.rollback,
        _is_undoable(storage, child),
    )


def _is_undoable(storage: Storage, record: Record, is_root: bool = True) -> bool:
    """Whether it, or a child of its own at any depth, has anything to undo that was not undone."""
    if record.status is Status.ERRORED or (record.rollback is not None and not is_root):
        return False
    if any(row.has_rollback and row.kind != INVOKE and _may_have_begun(row) for row in record.steps.values()):
        return True
    kin = (each for each in storage if each.parent_id == record.id)
    return any(_is_undoable(storage, each, is_root=False) for each in kin)


def _may_have_begun(row: StepRow) -> bool:
    return row.has_begun or row.status == "handed"
