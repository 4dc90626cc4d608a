"""Claims in batches: which attempts are ours, and the code's own call for each.

Owns: claiming, and bringing the replay that holds the call up to date. Does not own: running bodies
(``attempts``). Runs in the engine thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.engine.running.placement import Ready
from orchestrator.engine.turning import loading
from orchestrator.engine.turning.coordinator import Coordinator
from orchestrator.engine.turning.recovery import Recovery
from orchestrator.engine.turning.replays import Replays
from orchestrator.engine.turning.results import Results
from orchestrator.errors import NonDeterminismError
from orchestrator.failpoints import reach
from orchestrator.ports import Clock
from orchestrator.store import histories, steps
from orchestrator.store.histories import Known
from orchestrator.store.session import Connection, Lane
from orchestrator.store.steps import Claim, Claimed
from orchestrator.workflow import saga
from orchestrator.workflow.language.commands import StepCall
from orchestrator.workflow.language.definition import Registry


@dataclass(slots=True)
class ClaimWanted:
    """A claim and who is told: ``answer(ready)``, or ``answer(None)`` when there is nothing to run."""

    claim: Claim
    answer: Callable[[Ready | None], None]
    is_settled: bool = False

    def settle(self, ready: Ready | None) -> None:
        if not self.is_settled:
            self.is_settled = True
            self.answer(ready)


class Claims:
    """Claims attempts for ``worker()``, the incarnation of the moment."""

    def __init__(
        self,
        lane: Lane,
        registry: Registry,
        replays: Replays,
        coordinator: Coordinator,
        clock: Clock,
        recovery: Recovery,
        worker: Callable[[], UUID],
    ) -> None:
        self._lane = lane
        self._registry = registry
        self._replays = replays
        self._coordinator = coordinator
        self._clock = clock
        self._recovery = recovery
        self._worker = worker

    def acting_for(self, worker: UUID) -> Claims:
        """The same for another incarnation: a dead child's, whose attempt its parent concludes."""
        other = copy.copy(self)
        other._worker = lambda: worker
        return other

    def run(self, wanted: Sequence[ClaimWanted], results: Results) -> list[ClaimWanted]:
        """Claim these; returns those to try again in the next flush, because their rows were locked."""
        self._replays.trim()
        known = [f"{name}@{version}" for name, version in self._registry.known()]
        worker = self._worker()
        with self._lane.connection() as connection:
            reach("claim.before")
            got, locked = steps.claim(connection, [w.claim for w in wanted], worker, known, self._clock.now())
            reach("claim.before_commit")
        reach("claim.after_commit")
        failures = self._bring_up(got.values())
        if failures:
            self._give_back(got, failures, worker, results)
        again = []
        for want in wanted:
            if want.claim in locked:
                again.append(want)
            elif want.claim in got and want.claim.instance not in failures and not self._is_void(want.claim):
                self._recovery.claimed(got[want.claim].row)
                want.settle(self._ready(got[want.claim]))
            else:
                want.settle(None)
        return again

    def _bring_up(self, claimed_all: Collection[Claimed]) -> dict[UUID, BaseException]:
        """Make sure that the replay of each claimed instance holds the call; returns what could not be built."""
        stale: dict[UUID, Known] = {}
        for claimed in claimed_all:
            instance = claimed.claim.instance
            execution = self._replays.get(instance)
            if execution is not None and execution.run != claimed.run:
                self._replays.drop(instance)
                execution = None
            if execution is None:
                stale[instance] = Known(instance)
            elif execution.seq < claimed.seq:
                stale[instance] = loading.known(execution)
        failures: dict[UUID, BaseException] = {}
        if stale:
            with self._lane.connection() as connection:
                self._load(connection, stale, failures)
        for claimed in claimed_all:
            instance = claimed.claim.instance
            if instance in failures or claimed.row.kind == "rollback" or self._is_cancelled(claimed):
                continue
            if self._is_void(claimed.claim):
                continue
            if self._call(claimed) is None:
                failures[instance] = NonDeterminismError(
                    f"Step {claimed.row.key!r} was started by this instance, but today's code does not come to it.",
                    claimed.row.key,
                )
        return failures

    def _load(
        self, connection: Connection, stale: dict[UUID, Known], failures: dict[UUID, BaseException]
    ) -> None:
        stored = histories.load(connection, stale.values())
        anew: dict[UUID, Known] = {}
        for instance, found in stored.items():
            execution = self._replays.get(instance)
            if execution is not None and execution.run != found.run:
                self._replays.drop(instance)
                anew[instance] = Known(instance)  # restarted since it was claimed
                continue
            try:
                if execution is None:
                    definition = self._registry.get(found.workflow, found.version)
                    self._replays.put(loading.build(found, definition, self._replays.limits))
                else:
                    loading.advance(execution, found)
            except BaseException as error:
                self._replays.drop(instance)
                if execution is not None and isinstance(error, NonDeterminismError):
                    anew[instance] = Known(instance)  # it may have answered step.patched too early
                else:
                    failures[instance] = error
        for instance in stale.keys() - stored.keys():
            failures[instance] = NonDeterminismError("The instance was deleted.")
        if anew:
            self._load(connection, anew, failures)

    def _is_cancelled(self, claimed: Claimed) -> bool:
        """Whether a turn elsewhere cancelled the step since it was claimed: the call is gone with it, and its body need
        not run; that it has ended is recorded."""
        execution = self._replays.get(claimed.claim.instance)
        row = execution.open.get(claimed.row.key) if execution is not None else None
        return row is not None and row.status == "cancelling"

    def _is_void(self, claim: Claim) -> bool:
        """Whether the attempt was taken away since it was claimed: by a restart, or by its instance's end."""
        execution = self._replays.get(claim.instance)
        row = execution.open.get(claim.key) if execution is not None else None
        return row is None or row.fence != claim.fence

    def _call(self, claimed: Claimed) -> StepCall | None:
        execution = self._replays.get(claimed.claim.instance)
        return (
            execution.replay.calls.get(saga.forward_key(claimed.row.key)) if execution is not None else None
        )

    def _ready(self, claimed: Claimed) -> Ready:
        execution = self._replays.get(claimed.claim.instance)
        assert execution is not None
        if claimed.error is not None:
            execution.error = claimed.error  # what its next handlers are to be told, too
        return Ready(claimed, self._call(claimed), execution.replay.definition)

    def _give_back(
        self, got: dict[Claim, Claimed], failures: dict[UUID, BaseException], worker: UUID, results: Results
    ) -> None:
        """This process cannot run these: as if never claimed, and the instance is held for code that fits."""
        mine = [claim for claim in got if claim.instance in failures]
        with self._lane.connection() as connection:
            steps.unclaim(connection, mine, worker)
        self._coordinator.block(failures.items(), results)
