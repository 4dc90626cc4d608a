"""Leases: what holds a slot by its row keeps its slot in Redis, and after a loss all of them are written anew.

Owns: when leases are renewed and by whom, putting back those that are missing, rebuilding after Redis was wiped,
restarted or taken over by another, and telling of that loss. Does not own: leases themselves (``gatekeeping``), which
rows hold one (``store.control.holders``), what else was lost with Redis (who is told).

One process, the walker, goes through all rows that hold a slot, once in ten seconds, a part in each cycle: each worker
would read all of them to find its own. As long as a walk was completed lately, and no longer, slots are granted: when
Postgres was away for longer than a lease, the leases are written anew before anybody gets one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from orchestrator.control.gatekeeping.gatekeeper import LEASE_MS, Gatekeeper
from orchestrator.control.rounds import Round
from orchestrator.ports import Holder, monotonic
from orchestrator.store.control import holders
from orchestrator.store.control.holders import Stretch
from orchestrator.store.session import Connection, Engine

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""From the beginning of one walk to that of the next."""
PAGE = 2_000
SHARE = 8
"""A cycle takes an eighth of all leases: a walk is over before the next one is due."""
SPENT_S = 0.3
"""No further page is begun in a cycle that has taken this long: alarms wait meanwhile."""
MARGIN_MS = 2_000
"""Leases are taken to end so much before they do."""
MANY = 100
"""When so many leases of a page are missing, and those are most of it, it is no accident of single ones."""
ABSTAINS_S = 10.0
"""A process that failed to renew leases leaves it to others for so long."""


class Leases:
    """The duty. ``lost`` is told, in one process, when what Redis held was lost: messages are gone too. ``prepare``
    puts there what has to stand there before slots are granted again."""

    def __init__(
        self,
        engine: Engine,
        account: str,
        gatekeeper: Gatekeeper,
        lost: Callable[[float], None] = lambda now: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._account = account
        self._gatekeeper = gatekeeper
        self._lost = lost
        self._prepare = prepare
        self._was_ready = False
        self._owes = False
        """A loss was seen, and is to be told by whoever has rebuilt: also where that, or telling, fails at first."""
        self._has_rebuilt = False
        self._abstains_until = 0.0
        self._walk_at = 0.0
        self._began = 0.0
        self._left: list[Stretch] = []

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round: says that slots may be granted, or sees to it that they may be; renews some leases."""
        upheld = self._gatekeeper.uphold(now >= self._abstains_until)
        if upheld is None:
            self._left, self._walk_at = [], 0.0
            return Round()
        if not upheld.is_ready:
            self._owes |= self._was_ready or upheld.is_other
            if self.rebuild() and self._owes:
                logger.warning("Redis has lost what it held; slots are granted again, by what Postgres says.")
                self._tell(now)
            return Round()
        self._was_ready = True
        self._owes &= self._has_rebuilt
        if upheld.is_walker:
            try:
                self._walk(now, max(PAGE, upheld.leases // SHARE))
            except Exception:
                self._abstains_until = now + ABSTAINS_S
                raise
        else:
            self._left, self._walk_at = [], 0.0
        if self._owes:
            self._tell(now)
        return Round()

    def rebuild(self) -> bool:
        """Write all leases anew, and grant slots from then on. ``False`` if somebody else is at it, or Redis failed."""
        began, self._has_rebuilt = monotonic(), False
        with self._engine.begin() as connection:
            if not holders.may_rebuild(connection, self._account):
                return False
            names = holders.workflows(connection, self._account)
            server = self._gatekeeper.clear(names)
            if server is None:
                return False
            written: dict[Holder, str] = {}
            if not self._write(connection, names, written):
                return False
            # What ended while its lease was written had none to give back; what began meanwhile was not read.
            if not self._write(connection, names, written, again=True):
                return False
            self._prepare()
            self._has_rebuilt = self._gatekeeper.open(server, self._fresh_ms(began))
        self._was_ready |= self._has_rebuilt
        return self._has_rebuilt

    def _tell(self, now: float) -> None:
        self._lost(now)
        self._owes = False

    def _write(
        self, connection: Connection, names: Sequence[str], written: dict[Holder, str], *, again: bool = False
    ) -> bool:
        """Leases for all rows that hold a slot and have not been ``written``; with ``again``, those that were and hold
        none any more lose theirs. ``False`` if Redis failed."""
        left, gone = holders.stretches(names), dict(written) if again else {}
        while left:
            page, left = holders.page(connection, self._account, left, PAGE)
            missing = [holder for holder in page if holder not in written]
            for holder in page:
                gone.pop(holder, None)
            if missing:
                restored = self._gatekeeper.restore(missing)
                if restored is None:
                    return False
                written.update(dict.fromkeys(missing, restored))
        self._withdraw(gone)
        return True

    def _withdraw(self, gone: dict[Holder, str]) -> None:
        by_mark: dict[str, list[Holder]] = {}
        for holder, restored in gone.items():
            by_mark.setdefault(restored, []).append(holder)
        for restored, those in by_mark.items():
            self._gatekeeper.withdraw(those, restored)

    def _walk(self, now: float, most: int) -> None:
        """Renew the leases of the next ``most`` rows that hold a slot, or some more."""
        if not self._left:
            if now < self._walk_at:
                return
            self._walk_at, self._began = now + EVERY_S, monotonic()
            with self._engine.begin() as connection:
                self._left = holders.stretches(holders.workflows(connection, self._account))
        began, part = monotonic(), 0
        while self._left and part < most and monotonic() - began < SPENT_S:
            with self._engine.begin() as connection:
                page, left = holders.page(connection, self._account, self._left, PAGE)
            if page and not self._renew(page):
                return  # Redis is away: what is left is left
            self._left = left
            part += len(page)
        if not self._left:
            self._gatekeeper.walked(self._fresh_ms(self._began))

    def _renew(self, page: Sequence[Holder]) -> bool:
        """Extend their leases; whoever has none, and still should, gets one. ``False`` while Redis is away."""
        missing = self._gatekeeper.renew(page)
        if not missing:
            return missing is not None
        if len(missing) >= MANY and 2 * len(missing) > len(page):
            logger.warning("Leases are missing in Redis, as after an eviction: all are written anew.")
            return self.rebuild()
        with self._engine.begin() as connection:
            running = holders.still(connection, (holder.instance for holder in missing))
            put_back = [holder for holder in missing if holder.instance in running]
            if not put_back:
                return True
            restored = self._gatekeeper.restore(put_back)
            if restored is None:
                return False
            # What has ended in between gave back a lease it did not have.
            running = holders.still(connection, (holder.instance for holder in put_back))
        gone = [holder for holder in put_back if holder.instance not in running]
        if gone:
            self._gatekeeper.withdraw(gone, restored)
        if len(gone) < len(put_back):
            logger.info("%d running instances had no slot, and have one again.", len(put_back) - len(gone))
        return True

    def _fresh_ms(self, began: float) -> int:
        """For how long leases that were renewed since ``began`` (monotonic) last."""
        return LEASE_MS - MARGIN_MS - int(1000 * (monotonic() - began))
