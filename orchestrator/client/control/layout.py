"""How queues are cut, and who coordinates: changed while everything runs.

Owns: these verbs. Does not own: what a change means and the rows (``store.control.layouts``), who takes which shard
(``control.shards``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import UnknownWorkflow
from orchestrator.store.control import layouts
from orchestrator.store.control.layouts import Generation
from orchestrator.store.session import transaction
from orchestrator.workflow.language.names import check_workflow_name

_UNKNOWN = "That was in the commit: it is unknown whether the queues were cut anew."


@dataclass(frozen=True, slots=True)
class CutRecord:
    """The last generation of a workflow's queue: what instances use that are created from now on."""

    workflow: str
    generation: int
    shards: int


def reshard(where: Orchestrator, shards: int, workflow: str | None = None) -> list[CutRecord]:
    """Cut the queue of ``workflow``, or of every workflow that has one, into ``shards`` shards, for the instances that
    are created from now on; those queued before drain where they are. Returns the generations that are used now.

    Nothing stops, no row is copied. Raises ``InvalidConfig`` for a number that cannot be, and where too much still
    drains; ``UnknownWorkflow`` where no worker has ever entered the workflow; ``ServiceUnavailable``.
    """
    account = where.settings.account
    with transaction(where.engine, "No queue was cut anew.", _UNKNOWN) as connection:
        known = sorted({each.workflow for each in layouts.generations(connection, account)})
        if workflow is not None and check_workflow_name(workflow) not in known:
            listed = f"known are: {', '.join(known)}" if known else "no worker has run yet"
            raise UnknownWorkflow(f"workflow {workflow!r} has no queue in this database; {listed}")
        chosen = known if workflow is None else [workflow]
        return _records([layouts.add(connection, account, name, shards) for name in chosen])


def coordinate(where: Orchestrator, who: str, shards: int | None = None) -> list[CutRecord]:
    """Let ``one`` worker coordinate the account (V1), or ``many`` (V2), and cut every queue anew for it: into one
    shard, or into ``shards`` (by default as many as the settings say). Nothing changes where it is so already.

    Raises ``InvalidConfig``, ``ServiceUnavailable``.
    """
    settings = where.settings
    with transaction(where.engine, "No queue was cut anew.", _UNKNOWN) as connection:
        found = layouts.coordinate(connection, settings.account, who, shards or settings.shards)
        return _records(found)


def _records(found: Sequence[Generation]) -> list[CutRecord]:
    return [CutRecord(each.workflow, each.generation, each.shards) for each in found]
