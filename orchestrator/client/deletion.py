"""Deleting many instances of a workflow.

Owns: ``Workflow.delete_batch`` and ``delete_all``, and what they answer. Does not own: the verb on rows
(``store.records.deletion``), deleting one (``steering``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from orchestrator.client.orchestrator import Orchestrator, check_outside, current, offload
from orchestrator.client.records import BatchError, DeleteResult
from orchestrator.errors import InstanceNotFound, InvalidConfig, InvalidInstanceId, OrchestratorError
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.names import check_instance_id
from orchestrator.workflow.status import Status

MOST = 1000
AT_ONCE = 200
"""Instances that ``delete_all`` deletes in one transaction."""


class Deletion:
    """The part of a workflow that deletes its instances."""

    definition: Definition

    def delete_batch(self, ids: Iterable[str], *, orchestrator: Orchestrator | None = None) -> DeleteResult:
        """Delete up to 1,000 instances, whatever they do, in one transaction; nothing is compensated.

        Each id is answered for itself: an instance that there is not, and the second of two equal ids, is an
        ``InstanceNotFound`` among ``errors``. Raises ``InvalidConfig`` for more than 1,000.
        """
        check_outside("delete_batch")
        wanted = [ids] if isinstance(ids, str) else list(ids)
        if len(wanted) > MOST:
            raise InvalidConfig(f"delete_batch takes at most {MOST:,} ids at once, not {len(wanted):,}.")
        result = DeleteResult()
        asked: dict[str, int] = {}
        for index, name_id in enumerate(wanted):
            try:
                if check_instance_id(name_id, scheduled=True) in asked:
                    raise InstanceNotFound(
                        name_id, f"the instance {name_id!r} is deleted already: it came twice"
                    )
                asked[name_id] = index
            except (InvalidInstanceId, InstanceNotFound) as error:
                result.errors.append(_error(index, name_id, error))
        gone = _delete(orchestrator or current(), self.definition.name, list(asked)) if asked else set()
        result.deleted.extend(name_id for name_id in asked if name_id in gone)
        result.errors.extend(
            _error(index, name_id, InstanceNotFound(name_id))
            for name_id, index in asked.items()
            if name_id not in gone
        )
        result.errors.sort(key=lambda error: error.index)
        return result

    async def adelete_batch(self, ids: Iterable[str], **options: Any) -> DeleteResult:
        """``delete_batch`` for asyncio."""
        check_outside("adelete_batch")
        return await offload(self.delete_batch, ids, **options)

    def delete_all(self, *, orchestrator: Orchestrator | None = None) -> int:
        """Delete every instance of the workflow, of all versions, and its registration with its schedules; how many
        instances there were. Nothing is compensated.

        It goes in batches: after an error, what was deleted is gone, and calling again deletes the rest. A worker that
        still serves the workflow registers it again when it starts.
        """
        check_outside("delete_all")
        from orchestrator.store.records import listing

        where, name, deleted = orchestrator or current(), self.definition.name, 0
        while True:
            with where.lanes.statement("What was deleted is gone.") as connection:
                listing.forget(connection, where.settings.account, name)
                rows = listing.page(
                    connection, where.settings.account, name, tuple(Status), AT_ONCE, None, newest_first=False
                )
            if not rows:
                return deleted
            deleted += len(_delete(where, name, [row.name_id for row in rows]))

    async def adelete_all(self, **options: Any) -> int:
        """``delete_all`` for asyncio."""
        check_outside("adelete_all")
        return await offload(self.delete_all, **options)


def _delete(where: Orchestrator, workflow: str, names: Sequence[str]) -> set[str]:
    """Delete these; the ids of those there were. Whoever waits for them, and their relatives, are told."""
    from orchestrator.store.records import children, deletion, listing
    from orchestrator.store.session import transaction

    unknown = "That was in the commit: it is unknown whether the instances were deleted."
    with transaction(where.engine, "No instance was deleted.", unknown) as connection:
        found = listing.named(connection, where.settings.account, workflow, names)
        relatives: Iterable[UUID] = children.relatives(connection, list(found.values()))
        gone = deletion.delete(connection, found.values())
    if gone:
        where.admission.revoke(workflow, gone, 0)  # no worker could tell any more whose slots they were
        where.news.announce(gone)
        where.hint([*gone, *relatives])
    return {name_id for name_id, instance in found.items() if instance in gone}


def _error(index: int, name_id: Any, error: OrchestratorError) -> BatchError:
    return BatchError(index, str(name_id), error.code, str(error))
