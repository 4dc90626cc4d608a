"""The cache of live replays: executions as committed, by instance, least recently used first.

Owns: which executions this process keeps, and marking evicted ones dead. Does not own: building them
(``loading``). Used from one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

from orchestrator.engine.turning.loading import Limits
from orchestrator.workflow.execution import Execution

CONTENDED_S = 1.0
"""After a lost race an instance takes the locking path for this long."""


class Replays:
    """At most ``limit`` executions. A replay in here contains committed facts only."""

    def __init__(self, limit: int, limits: Limits | None = None) -> None:
        self._limit = limit
        self.limits = limits or Limits()
        """What replays that are built for this cache may do."""
        self._kept: OrderedDict[UUID, Execution] = OrderedDict()
        self._contended: dict[UUID, float] = {}

    def get(self, instance: UUID) -> Execution | None:
        execution = self._kept.get(instance)
        if execution is not None:
            self._kept.move_to_end(instance)
        return execution

    def put(self, execution: Execution) -> None:
        self._kept[execution.id] = execution
        self._kept.move_to_end(execution.id)

    def trim(self) -> None:
        """Evict what is over the limit. Between flushes only: within one, what was put is needed."""
        while len(self._kept) > self._limit:
            _, evicted = self._kept.popitem(last=False)
            evicted.replay.discard()

    def drop(self, instance: UUID) -> None:
        """Forget an execution: its turn was not, or may not have been, committed, or it is finished."""
        execution = self._kept.pop(instance, None)
        if execution is not None:
            execution.replay.discard()

    def clear(self) -> None:
        for instance in list(self._kept):
            self.drop(instance)
        self._contended.clear()

    def lost_race(self, instance: UUID, now: float) -> None:
        self._contended[instance] = now + CONTENDED_S
        if len(self._contended) > 10_000:
            self._contended = {i: t for i, t in self._contended.items() if t > now}

    def is_contended(self, instance: UUID, now: float) -> bool:
        until = self._contended.get(instance)
        return until is not None and until > now

    def __len__(self) -> int:
        return len(self._kept)
