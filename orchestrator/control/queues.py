"""The queues of this worker's shards: what of them asks for slots, and starting what is granted.

Owns: one serving of them, and how much is asked for at once. Does not own: which shards (``shards``), the policy
(``fairness``), slots (``gatekeeping``), when it is done (``souschef``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from orchestrator.control import fairness
from orchestrator.control.shards import Share
from orchestrator.ports import Holder
from orchestrator.store.control import queue
from orchestrator.store.control.queue import Part, Queued
from orchestrator.store.session import Connection, Engine

START_ALARM_S = 5.0
"""A started instance whose turn got lost is looked at after this long."""
AT_LEAST = 100
"""So many of a workflow ask, however few were granted last."""
FULL = 1_000_000
ROUNDS = 3
"""Reads of one serving, at most: what some parts do not have is read from the others."""


class Slots(Protocol):
    """Where queues ask for slots. No call raises for want of the service behind it: nothing is granted then."""

    def ask(self, wanted: Sequence[Holder], weights: Mapping[str, int], more: Collection[str]) -> set[UUID]:
        """Those of ``wanted`` that may run now; of a workflow the first come first. What is not granted is kept in mind
        for the next call. ``weights``: by workflow, how many shards ask; ``more``: those of which more is queued."""

    def release(self, holders: Sequence[Holder]) -> None:
        """Give back the slots of these."""


@dataclass(slots=True, frozen=True)
class Served:
    """What one serving came to."""

    started: Sequence[UUID] = ()
    """Those that run now and whose code is known here: to be woken. Of the others, their alarms ring."""
    is_short: bool = False
    """Something asked in vain."""
    is_more: bool = False
    """Of some workflow all that asked was granted, and more is queued."""


class Queues:
    """Belongs to the SousChef's thread."""

    def __init__(self, engine: Engine, account: str, slots: Slots) -> None:
        self._engine = engine
        self._account = account
        self._slots = slots
        self._appetites: dict[str, int] = {}
        """Of workflows that got less than they asked for: how many ask next. A thousand that ask in vain five times a
        second would be work for nothing; whoever gets what he asks for asks for twice as much."""

    def serve(self, share: Share, known: Collection[str], now: float, room: int) -> Served:
        """Ask for slots for at most ``room`` instances, all in one call, and start those that get one. ``known``: the
        code there is here (``name@version``); other versions are started for the workers that have them."""
        parts = [
            Part(workflow, shard, version)
            for workflow, shard in sorted(share.shards)
            for version in sorted(share.versions.get(workflow, ()))
        ]
        if not parts:
            return Served()
        with self._engine.begin() as connection:
            filled = queue.filled(connection, self._account, parts)
            candidates, more = self._read(connection, filled, room)
        chosen = fairness.choose(room, candidates)
        more |= {each.workflow for each in set(candidates).difference(chosen)}
        wanted = [Holder(each.id, each.workflow) for each in chosen]
        weights = Counter(workflow for workflow, _ in {(part.workflow, part.shard) for part in filled})
        granted = self._slots.ask(wanted, weights, more)
        started = self._start([each for each in chosen if each.id in granted], known, now)
        return self._served(chosen, granted, more, started)

    def _read(
        self, connection: Connection, filled: Sequence[Part], room: int
    ) -> tuple[list[Queued], set[str]]:
        """The first of each part, about ``room`` in all, and the workflows of which there is more."""
        limits = dict.fromkeys(filled, 0)
        found: dict[Part, list[Queued]] = {}
        cut: Collection[Part] = filled
        for _ in range(ROUNDS):
            spare = room - sum(map(len, found.values()))
            if not cut or spare <= room // 10:
                break
            if not self._raise(limits, cut, spare):
                break
            found.update((part, []) for part in cut)
            for each in queue.first(connection, self._account, {part: limits[part] for part in cut}):
                found[each.part].append(each)
            cut = [part for part in cut if len(found[part]) >= limits[part]]
        return [each for of in found.values() for each in of], {part.workflow for part in cut}

    def _raise(self, limits: dict[Part, int], parts: Collection[Part], spare: int) -> bool:
        """Let ``spare`` more be read of these parts, of which as many as their limits were read: max-min over
        workflows, and evenly over the parts of each. ``False`` if none of them may have more."""
        counts = Counter(part.workflow for part in parts)
        read: Counter[str] = Counter()
        for part, limit in limits.items():
            read[part.workflow] += limit
        wanted = {name: max(0, self._appetites.get(name, FULL) - read[name]) for name in counts}
        shares = fairness.divide(spare, wanted)
        for part in parts:
            limits[part] += -(-shares[part.workflow] // counts[part.workflow])
        return any(shares.values())

    def _start(self, granted: Sequence[Queued], known: Collection[str], now: float) -> list[UUID]:
        """Returns those of them that are to be woken here. Whatever was paused or ended meanwhile needs no slot."""
        ours = [each.id for each in granted if f"{each.workflow}@{each.version}" in known]
        foreign = [each.id for each in granted if f"{each.workflow}@{each.version}" not in known]
        started: list[UUID] = []
        others: list[UUID] = []
        if ours or foreign:
            with self._engine.begin() as connection:
                started = queue.start(connection, ours, now + START_ALARM_S) if ours else []
                others = queue.start(connection, foreign, now) if foreign else []
                left = [each for each in granted if each.id not in {*started, *others}]
                idle = queue.idle(connection, [each.id for each in left]) if left else set()
            if idle:
                self._slots.release([Holder(each.id, each.workflow) for each in left if each.id in idle])
        return started

    def _served(
        self, chosen: Sequence[Queued], granted: set[UUID], more: set[str], started: list[UUID]
    ) -> Served:
        asked = Counter(each.workflow for each in chosen)
        got = Counter(each.workflow for each in chosen if each.id in granted)
        short = {workflow for workflow, count in asked.items() if got[workflow] < count}
        self._appetites = {workflow: max(AT_LEAST, 2 * got[workflow]) for workflow in short}
        return Served(started, bool(short), bool(more - short))
