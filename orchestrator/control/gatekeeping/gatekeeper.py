"""The Gatekeeper: concurrency slots, as leases of named holders in Redis.

Owns: asking for slots, insisting on them, giving them back, renewing them. Does not own: who holds one in truth (rows
in Postgres, ``control.leases``), the rule by which they are shared (``shares.lua``), creation (``admission``).

A slot is a lease, never a count: it ends by itself, and a call that is repeated changes nothing twice, because it names
its holders. None of the calls raises when Redis is away; then nothing is granted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.control.gatekeeping.scripts import Script, Scripts
from orchestrator.errors import ServiceUnavailable
from orchestrator.ports import Holder
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

LEASE_MS = 30_000
"""So long a slot is held without being renewed."""
READY_MS = 5_000
"""So long slots are granted without any worker saying that they may."""
WALKER_MS = 3_000
"""So long the process that renews the leases need not show up."""
AT_ONCE = 5_000
"""Holders in one call: Redis does nothing else meanwhile."""


class Held(NamedTuple):
    """Slots that are held, and how many there are; ``None``: no limit but the account's."""

    used: int
    limit: int | None


class Usage(NamedTuple):
    """The slots of the account and of workflows, and whether any are granted."""

    account: Held
    workflows: dict[str, Held]
    is_ready: bool


class Upheld(NamedTuple):
    """What a worker learns in each cycle."""

    is_ready: bool
    """Slots are granted. If not, somebody has to rebuild the leases from Postgres."""
    is_other: bool
    """The leases were not those of this server: it was restarted, or another took over."""
    is_walker: bool
    """This process is to renew the leases."""
    leases: int
    """How many there are, about."""


class Gatekeeper:
    """A ``ports.Gate`` on Redis, safe for threads. ``asker`` is a token of this process, without ``|``;
    ``concurrency_of`` gives a workflow's limit, ``None`` where only the account's holds, and that one for ``""``,
    ``None`` where the settings say it. What operators set wins over all of it where it stands in Redis."""

    def __init__(
        self,
        settings: Settings,
        asker: str,
        concurrency_of: Callable[[str], int | None],
        scripts: Scripts | None = None,
    ) -> None:
        self._asker = asker
        self._concurrency_of = concurrency_of
        self._most = settings.max_concurrency
        self._scripts = scripts or Scripts(settings)
        self._demanded: set[str] = set()
        self.on_freed: Callable[[], None] = lambda: None
        """Called, from any thread, when a slot was given back that somebody in a queue may want."""
        script = self._scripts.script
        self._ask = script("shares", "ask")
        self._insist, self._release = script("insist"), script("release")
        self._renew, self._restore, self._withdraw = script("renew"), script("restore"), script("withdraw")
        self._uphold, self._clear, self._open = script("uphold"), script("clear"), script("open")
        self._walked, self._usage = script("walked"), script("usage")

    # -- ports.Gate ------------------------------------------------------------------------------------------

    def acquire(self, wanted: Sequence[Holder]) -> set[UUID]:
        """Those of ``wanted`` that may run now; of a workflow the first come first. Who holds a slot keeps it. Whoever
        gets none is not remembered: a queue asks for it."""
        return self._asked("", wanted, {}, (), ())

    def insist(self, holders: Sequence[Holder]) -> None:
        """Let these hold a slot whatever the limits are. While Redis is away, ``control.leases`` does it later."""
        for part in _parts(holders):
            self._call(self._insist, LEASE_MS, *_flat(_grouped(part)))

    def release(self, holders: Sequence[Holder]) -> None:
        """Give back the slots of these. While Redis is away their leases end by themselves."""
        is_wanted = False
        for part in _parts(holders):
            is_wanted |= bool(self._call(self._release, *_flat(_grouped(part))))
        if is_wanted:
            self.on_freed()

    # -- the queue (one thread: the SousChef's) ---------------------------------------------------------------

    def ask(
        self, wanted: Sequence[Holder], weights: Mapping[str, int] | None = None, more: Collection[str] = ()
    ) -> set[UUID]:
        """Those of ``wanted`` that may run now; of a workflow the first come first.

        One call for all that a worker's queues want, each time all of it: what it does not get is kept for it against
        others for 2.5 s, max-min over workflows, and within one by ``weights`` (shards that have something queued).
        ``more``: workflows of which more is queued than is asked for. So long new instances queue behind them.
        """
        left = self._demanded.difference(holder.workflow for holder in wanted)
        granted = self._asked(self._asker, wanted, weights or {}, more, left)
        self._demanded = {holder.workflow for holder in wanted if holder.instance not in granted}
        return granted

    # -- leases (one thread: that of the duty) -----------------------------------------------------------------

    def renew(self, holders: Sequence[Holder]) -> list[Holder] | None:
        """Extend the leases of those that have one; returns the others. ``None`` while Redis is away."""
        missing: list[Holder] = []
        for part in _parts(holders):
            grouped = _grouped(part)
            answers = self._call(self._renew, LEASE_MS, *_flat(grouped))
            if answers is None:
                return None
            for (workflow, ids), marks in zip(grouped.items(), answers, strict=True):
                missing += [
                    Holder(one, workflow) for one, mark in zip(ids, marks, strict=True) if mark == "0"
                ]
        return missing

    def restore(self, holders: Sequence[Holder]) -> str | None:
        """Give a lease to those of these that have none, over the limit too; at most ``AT_ONCE`` of them. Returns what
        ``withdraw`` is told if one of them turns out to have ended meanwhile; ``None`` while Redis is away."""
        found = self._call(self._restore, LEASE_MS, *_flat(_grouped(holders)))
        return None if found is None else str(found)

    def withdraw(self, holders: Sequence[Holder], restored: str) -> None:
        """Take back what that ``restore`` gave these, unless they asked for a slot since."""
        self._call(self._withdraw, restored, *_flat(_grouped(holders)))

    def uphold(self, may_walk: bool = True) -> Upheld | None:
        """Let slots go on being granted, as long as ``walked`` said that leases are renewed; ``None`` while Redis is
        away. One process at a time is told to renew them (the walker), of those with ``may_walk``."""
        found = self._call(self._uphold, READY_MS, WALKER_MS, self._asker, int(may_walk))
        return None if found is None else Upheld(found[0] == 2, found[0] == 1, bool(found[1]), found[2])

    def walked(self, fresh_ms: int) -> None:
        """Say that the lease of each running instance lasts for ``fresh_ms`` from now; so long slots are granted."""
        if fresh_ms > 0:
            self._call(self._walked, fresh_ms)

    def clear(self, workflows: Collection[str]) -> str | None:
        """Begin anew: nothing is granted before ``open``, and all leases of these workflows are gone. Returns which
        server that was; ``None`` while Redis is away."""
        found = self._call(self._clear, *workflows)
        return None if found is None else str(found)

    def open(self, server: str, fresh_ms: int = LEASE_MS) -> bool:
        """Grant slots from now on: ``server`` has all leases, for ``fresh_ms``. ``False`` if it is another by now."""
        return bool(self._call(self._open, server, READY_MS, max(1, fresh_ms)))

    def usage(self, workflows: Collection[str] = ()) -> Usage | None:
        """How many slots are held; ``None`` while Redis is away."""
        limits = [each for name in workflows for each in (name, self._limit(name))]
        found = self._call(self._usage, self._account(), *limits)
        if found is None:
            return None
        pairs = zip(found[1::2], found[2::2], strict=True)
        held = [Held(int(used), int(most) if most else None) for used, most in pairs]
        return Usage(held[0], dict(zip(workflows, held[1:], strict=True)), found[0] == "1")

    def close(self) -> None:
        """Ask for nothing any more: others need not wait for it."""
        if self._demanded:
            self.ask(())
        self._scripts.close()

    # -- inside ------------------------------------------------------------------------------------------------

    def _asked(
        self,
        asker: str,
        wanted: Sequence[Holder],
        weights: Mapping[str, int],
        more: Collection[str],
        left: Collection[str],
    ) -> set[UUID]:
        grouped = _grouped(wanted)
        for name in more:
            grouped.setdefault(name, [])
        if not grouped and not left:
            return set()
        arguments: list[str | int | float] = [LEASE_MS, self._account(), asker, len(left), *left]
        for name, ids in grouped.items():
            arguments += (
                name,
                self._limit(name),
                max(1, weights.get(name, 1)),
                int(name in more),
                _joined(ids),
            )
        answers = self._call(self._ask, *arguments)
        return set() if answers is None else set(_marked(grouped, answers))

    def _account(self) -> int:
        found = self._concurrency_of("")
        return self._most if found is None else found

    def _limit(self, workflow: str) -> int | str:
        found = self._concurrency_of(workflow)
        return "" if found is None else found

    def _call(self, script: Script, *arguments: str | int | float) -> Any:
        """The answer; ``None`` while Redis is away."""
        try:
            return self._scripts.call(script, *arguments)
        except ServiceUnavailable as error:
            logger.debug("Slots are left as they are (%s): %s", script.name, error)
            return None


def _parts(holders: Sequence[Holder]) -> Iterator[Sequence[Holder]]:
    return (holders[first : first + AT_ONCE] for first in range(0, len(holders), AT_ONCE))


def _grouped(holders: Sequence[Holder]) -> dict[str, list[UUID]]:
    """By workflow, each once, in their order."""
    grouped: dict[str, dict[UUID, None]] = {}
    for instance, workflow in holders:
        grouped.setdefault(workflow, {})[instance] = None
    return {workflow: list(ids) for workflow, ids in grouped.items()}


def _flat(grouped: Mapping[str, Sequence[UUID]]) -> list[str]:
    return [each for workflow, ids in grouped.items() for each in (workflow, _joined(ids))]


def _joined(ids: Sequence[UUID]) -> str:
    return "".join(map(str, ids))


def _marked(grouped: Mapping[str, Sequence[UUID]], answers: Sequence[str]) -> Iterator[UUID]:
    for ids, marks in zip(grouped.values(), answers, strict=True):
        yield from (one for one, mark in zip(ids, marks, strict=True) if mark == "1")
