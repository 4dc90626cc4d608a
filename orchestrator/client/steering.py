"""Operators' verbs, applied: lock, decide, write, in the caller's transaction.

Owns: the SQL frame around ``workflow.verbs``. Does not own: what the verbs decide.
"""

from __future__ import annotations

from orchestrator.engine.turning import loading
from orchestrator.errors import InstanceNotFound
from orchestrator.store import histories, instances, turns
from orchestrator.store.histories import Known
from orchestrator.store.session import Connection
from orchestrator.workflow.deciding import verbs
from orchestrator.workflow.execution import Writes
from orchestrator.workflow.language.definition import Definition


def terminate(
    connection: Connection, account: str, definition: Definition, name_id: str, now: float, *, rollback: bool
) -> Writes:
    """Terminate one instance; ``again`` in what comes back asks for a turn that compensates.

    Raises ``InstanceNotFound`` and ``InvalidTransition``.
    """
    instance = instances.lock_by_name(connection, account, definition.name, name_id)
    stored = histories.load(connection, [Known(instance)]).get(instance) if instance is not None else None
    if stored is None:
        raise InstanceNotFound(name_id)
    execution = loading.build_held(stored, definition)
    writes = verbs.terminate(execution, now, rollback=rollback)
    turns.commit(connection, [writes])
    return writes
