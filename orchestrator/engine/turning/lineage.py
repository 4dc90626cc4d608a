"""Children and parents in a flush: what fresh rows tell each of the other, and children that do their parent's word.

Owns: reading relatives for turns, and the transaction in which a child terminates itself or begins to undo what it
did. Does not own: what follows from what is read (``workflow.deciding``), the queries (``store.records.children``).

A child may be told to end while it is queued, paused, blocked, or of a workflow that cannot be replayed; so that is
done as an operator's verb is, under its locks and without its code, by whatever worker looks first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

from orchestrator.engine.turning import loading
from orchestrator.engine.turning.replays import Replays
from orchestrator.engine.turning.results import Results
from orchestrator.engine.turning.slots import Slots
from orchestrator.failpoints import reach
from orchestrator.ports import Clock
from orchestrator.store import histories, session, steps, turns
from orchestrator.store.histories import Known, Stored
from orchestrator.store.records import children as records
from orchestrator.store.records.children import Awaited
from orchestrator.store.session import Connection, Engine
from orchestrator.workflow.deciding import children
from orchestrator.workflow.deciding.lineage import obey
from orchestrator.workflow.execution import ChildEnded, Execution, Wake, Writes
from orchestrator.workflow.language.commands import INVOKE
from orchestrator.workflow.language.invocation import InvokeConfig
from orchestrator.workflow.status import FINISHED, HOLDS_SLOT

logger = logging.getLogger(__name__)


def load(connection: Connection, stored: Collection[Stored], replays: Replays) -> None:
    """Fill in the children and parents of those that have any; the others cost no statement."""
    awaited: dict[str, list[Awaited]] = {}
    compensating: list[UUID] = []
    having = [one for one in stored if one.parent_id is not None]
    for one in stored:
        if one.ending is not None and _is_parent(one, replays.get(one.id)):
            compensating.append(one.id)
        elif one.ending is None:
            for row in one.rows:
                if row.kind == INVOKE and row.status == "waiting" and row.has_rollback:
                    config = InvokeConfig.from_json(row.config or "")
                    child = Awaited(one.id, UUID(config.instance), config.workflow, config.id)
                    awaited.setdefault(one.account, []).append(child)
    by_id = {one.id: one for one in stored} if awaited or compensating else {}
    for account, some in awaited.items():
        for parent, states in records.ended(connection, account, some).items():
            by_id[parent].children = states
    if compensating:
        for parent, states in records.of_parents(connection, compensating).items():
            by_id[parent].children = states
    if having:
        found = records.parents(connection, [one.id for one in having])
        for one in having:
            one.parent = found.get(one.id)


def _is_parent(one: Stored, execution: Execution | None) -> bool:
    """Whether it ever started a child. What is in memory already is not among the rows that were read."""
    return any(row.kind == INVOKE for row in one.rows) or (execution is not None and bool(execution.invoked))


def told(stored: Stored, execution: Execution) -> list[ChildEnded]:
    """What the children of an instance have come to, as arrivals; while it compensates, it is kept for the chain."""
    if stored.children is None:
        return []
    if stored.ending is not None:
        execution.children = {child.id: child for child in stored.children}
        return []
    return [ChildEnded(key, child) for key, child in children.ends(execution, stored.children)]


def has_word(stored: Stored) -> bool:
    """Whether the parent of an instance asks something of it."""
    parent = stored.parent
    return parent is not None and children.word(stored.status, stored.ending, parent) is not None


class Lineage:
    """Collects children that have their parent's word to do, during a flush, and lets them do it after."""

    def __init__(
        self,
        engine: Engine,
        replays: Replays,
        clock: Clock,
        slots: Slots,
        forgotten: Callable[[UUID], None],
    ) -> None:
        self._engine = engine
        self._replays = replays
        self._clock = clock
        self._slots = slots
        self._forgotten = forgotten
        self._called: list[UUID] = []

    def add(self, instance: UUID) -> None:
        """``instance`` has a word of its parent to do."""
        self._called.append(instance)

    def drop(self) -> None:
        """Forget who was called: the flush is done again."""
        self._called.clear()

    def write(self, results: Results) -> None:
        """Let them do it, one by one. What somebody else holds is for the next flush."""
        while self._called:
            instance = self._called.pop()
            try:
                self._obey(instance, results)
            except Exception as refused:
                if not session.is_contention(refused):
                    raise
                results.repeat.setdefault(instance, []).append(Wake())
                results.skipped = True

    def _obey(self, instance: UUID, results: Results) -> None:
        with self._engine.begin() as connection:
            if instance not in turns.lock(connection, [instance]):
                results.skipped = True
                results.repeat.setdefault(instance, []).append(Wake())
                return
            steps.lock(connection, [instance])
            found = histories.load(connection, [Known(instance)]).get(instance)
            if found is None:
                return
            found.parent = records.parents(connection, [instance]).get(instance)
            writes = obey(loading.build_held(found), self._clock.now())
            if writes is None:
                return
            turns.commit(connection, [writes])
            reach("lineage.before_commit")
        reach("lineage.after_commit")
        self._done(found, writes, results)

    def _done(self, found: Stored, writes: Writes, results: Results) -> None:
        logger.info("Instance %s is %s at the word of its parent.", found.id, writes.status)
        self._replays.drop(found.id)
        results.changed.append(found.id)
        results.cancels.extend((found.id, key, fence) for key, fence in writes.cancelled)
        results.hints.extend(writes.hints)
        if found.parent_id is not None:
            results.hints.append(found.parent_id)  # it may wait for this code to stop
        if writes.again:
            results.repeat.setdefault(found.id, []).append(Wake())
        if writes.status in FINISHED:
            results.news.append(found.id)
            self._forgotten(found.id)
        if writes.status not in HOLDS_SLOT:
            self._slots.release(found.id, found.workflow)
        elif writes.ending is not None:
            self._slots.insist(found.id, found.workflow)


def hints(all_writes: Iterable[Writes]) -> list[UUID]:
    """Who should look after these turns: children that were created or told something, and parents."""
    return [who for writes in all_writes for who in (*(c.id for c in writes.children), *writes.hints)]
