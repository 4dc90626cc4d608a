"""Which shards are this worker's: it takes its share, gives up what is too much, and looks after what no layout knows.

Owns: how many shards each worker is to have, and when ownership is looked at. Does not own: the rows
(``store.control.shards``), the cut (``store.control.layouts``), what is done with a shard (``souschef``).

All workers reckon the same shares from the same rows, and nobody takes what has a living owner; so a new worker has its
share within two cycles, and what a dead one had is taken over within ``LEASE_S`` and two cycles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from orchestrator.settings import Settings
from orchestrator.store.control import layouts, queue, shards
from orchestrator.store.control.layouts import HIGHEST, ONE, Generation
from orchestrator.store.control.shards import Owned
from orchestrator.store.session import Connection, Engine

logger = logging.getLogger(__name__)

LEASE_S = 5.0
"""The shards of a worker that does not renew are free after this long."""
RENEW_S = 2.0
LOOK_S = 0.9
"""Between two looks at the rows, at least: cycles may come faster."""
RETIRE_S = 10.0
STRAYS = 64
"""Shards outside of every layout that are looked after at once, in each gap."""


@dataclass(slots=True, frozen=True)
class Share:
    """What this worker looks after."""

    shards: frozenset[tuple[str, int]] = frozenset()
    """(workflow, shard), those outside of every layout included."""
    leads: frozenset[str] = frozenset()
    """The workflows whose first shard of the last generation is its own: what one worker has to do, it does."""
    gaps: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """Of the workflows it leads, the numbers (lowest, highest) that no layout has. With them, every number is looked
    after by exactly one worker, once each has its share."""
    versions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of each workflow known here, the versions that some living worker knows."""
    workers: int = 1
    """How many look after shards in this account."""


def quotas(
    counts: Mapping[str, int], alive: Mapping[UUID, Collection[str]], coordinators: str
) -> dict[UUID, dict[str, int]]:
    """How many shards of each workflow each worker is to have. ``counts``: how many there are; ``alive``: the workers,
    the eldest first, with the workflows they know.

    Shares of a workflow differ by one at most, and so do those of all workflows between workers that know the same.
    Where one worker coordinates, the eldest that knows a workflow has all of it.
    """
    found: dict[UUID, dict[str, int]] = {worker: {} for worker in alive}
    loads = dict.fromkeys(alive, 0)
    for workflow in sorted(counts):
        able = [worker for worker, known in alive.items() if workflow in known]
        if not able:
            continue
        if coordinators == ONE:
            able = able[:1]
        each, rest = divmod(counts[workflow], len(able))
        more = set(sorted(able, key=lambda worker: loads[worker])[:rest])
        for worker in able:
            found[worker][workflow] = quota = each + (worker in more)
            loads[worker] += quota
    return found


class Shards:
    """One per worker process, called by its SousChef's thread; ``share`` may be read from any. ``me`` tells the
    incarnation of the moment, ``known`` the workflows and versions registered here."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        me: Callable[[], UUID],
        known: Callable[[], Sequence[tuple[str, str]]],
    ) -> None:
        self._engine = engine
        self._account = settings.account
        self._me = me
        self._known = known
        self._cut = settings.shards
        """How many the queue of a new workflow gets."""
        self._owner: UUID | None = None
        self._renew_at = self._look_at = self._retire_at = 0.0
        self.share = Share()

    def cycle(self, now: float) -> Share:
        """Renew, take or give up as others come and go, and find strays. What it returns holds until the next call."""
        me = self._me()
        if me != self._owner:
            self._renew_at = self._look_at = 0.0
        if now < self._look_at:
            return self.share
        workflows = sorted({name for name, _ in self._known()})
        is_due = now >= self._renew_at
        with self._engine.begin() as connection:
            if is_due and not shards.renew(connection, me, now + LEASE_S):
                self._owner, self.share = None, Share()
                return self.share
            self.share = self._looked(connection, me, workflows, now)
        if is_due:  # and committed: a look that fails takes the renewal with it
            self._owner, self._renew_at = me, now + RENEW_S
        self._look_at = now + LOOK_S
        if now >= self._retire_at and self.share.leads:
            self._retire_at = now + RETIRE_S
            self._retire(self.share.leads)
        return self.share

    @property
    def phase(self) -> float:
        """This worker's own place within a second or a cycle, from 0 to 1."""
        return self._me().int % 1000 / 1000

    def release(self) -> None:
        """Leave everything to the others at once: this worker is going."""
        if self._owner is None:
            return
        with self._engine.begin() as connection:
            shards.release_all(connection, self._owner)
        self._owner, self.share = None, Share()

    # -- inside ---------------------------------------------------------------------------------------------

    def _looked(self, connection: Connection, me: UUID, workflows: Sequence[str], now: float) -> Share:
        alive = shards.alive(connection, self._account, now)
        alive[me] = frozenset(f"{name}@{version}" for name, version in self._known())
        cuts = self._cuts(connection, workflows)
        # All workflows that anybody knows: the rest of one is dealt by the load of the others, and two that reckoned
        # with their own alone would leave a shard to each other.
        every = sorted({pair.partition("@")[0] for known in alive.values() for pair in known})
        owned = shards.owned(connection, self._account, every, me, now)
        mine = self._balanced(connection, me, alive, owned, now)
        leads = frozenset(name for name, found in cuts.items() if (name, found[-1].first) in mine)
        gaps = {name: gaps_of(cuts[name]) for name in leads}
        strays = queue.strays(connection, self._account, gaps, STRAYS) if gaps else []
        known = {pair for each in alive.values() for pair in each}
        versions = {
            name: frozenset(pair[len(name) + 1 :] for pair in known if pair.startswith(f"{name}@"))
            for name in workflows
        }
        return Share(frozenset((*mine, *strays)), leads, gaps, versions, len(alive))

    def _cuts(self, connection: Connection, workflows: Sequence[str]) -> dict[str, list[Generation]]:
        """The generations of each workflow; one that has none yet gets its first."""
        found = layouts.generations(connection, self._account, workflows)
        if {each.workflow for each in found} != set(workflows):
            layouts.enter(connection, self._account, workflows, self._cut)
            found = layouts.generations(connection, self._account, workflows)
        cuts: dict[str, list[Generation]] = {}
        for each in found:
            cuts.setdefault(each.workflow, []).append(each)
        return cuts

    def _balanced(
        self,
        connection: Connection,
        me: UUID,
        alive: Mapping[UUID, Collection[str]],
        owned: Mapping[str, Owned],
        now: float,
    ) -> set[tuple[str, int]]:
        """What is mine, once what is too much was given up and what is missing was taken, as far as it is free."""
        mine = {(name, shard) for name, found in owned.items() for shard in found.mine}
        coordinators = layouts.coordinators(connection, self._account)
        names = {worker: {pair.partition("@")[0] for pair in known} for worker, known in alive.items()}
        quota = quotas({name: found.shards for name, found in owned.items()}, names, coordinators).get(me, {})
        # Which ones are given up is left to chance: a new worker is to get some of what is full and of what is empty.
        chance = Random(now)
        excess: list[tuple[str, int]] = []
        wanted: dict[str, int] = {}
        for name, found in owned.items():
            more = quota.get(name, 0) - len(found.mine)
            if more < 0:
                excess.extend((name, shard) for shard in chance.sample(found.mine, -more))
            elif more > 0 and found.free:
                wanted[name] = more
        if excess:
            shards.give_up(connection, self._account, me, excess)
        taken = shards.take(connection, self._account, me, wanted, now) if wanted else []
        return mine.difference(excess).union(taken)

    def _retire(self, leads: Collection[str]) -> None:
        with self._engine.begin() as connection:
            retired = layouts.retire(connection, self._account, sorted(leads), RETIRE_S)
        for each in retired:
            logger.info(
                "Generation %d of the queue of workflow %r (shards %d to %d) has drained.",
                each.generation, each.workflow, each.first, each.last,
            )  # fmt: skip


def gaps_of(cut: Sequence[Generation]) -> list[tuple[int, int]]:
    """The numbers (lowest, highest) that none of these generations of one workflow has."""
    found, low = [], 0
    for each in sorted(cut, key=lambda generation: generation.first):
        if each.first > low:
            found.append((low, each.first - 1))
        low = each.last + 1
    if low <= HIGHEST:
        found.append((low, HIGHEST))
    return found
