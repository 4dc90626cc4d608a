"""Retention: every worker deletes expired instances, a little at a time.

Owns: when, how many, and for how long at once. Does not own: which have expired and how they are deleted
(``store.records.retention``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from orchestrator.control.rounds import Round
from orchestrator.ports import monotonic
from orchestrator.store.records import retention
from orchestrator.store.session import Engine

logger = logging.getLogger(__name__)

EVERY_S = 5.0
"""Without anything left to delete, the next look comes after this long."""
AT_ONCE = 50
"""Instances in one transaction: some have many thousand rows."""
PER_CYCLE = 500
SPENT_S = 0.1
"""No further batch is begun in a cycle that has taken this long: alarms wait meanwhile."""


class Retention:
    """The duty. Safe on every worker at once; where nothing is due it costs one look at the end of an index."""

    def __init__(self, engine: Engine, account: str) -> None:
        self._engine = engine
        self._account = account
        self._look_at = 0.0

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round. Where more is left than one takes, it goes on in the next cycle."""
        if now < self._look_at:
            return Round()
        began, seen, deleted, last = monotonic(), 0, 0, AT_ONCE
        while last == AT_ONCE and seen < PER_CYCLE and monotonic() - began < SPENT_S:
            with self._engine.begin() as connection:
                swept = retention.sweep(connection, self._account, now, AT_ONCE)
            last = swept.seen
            seen, deleted = seen + last, deleted + swept.deleted
        if last < AT_ONCE:
            self._look_at = now + EVERY_S
        if deleted:
            logger.info("Deleted %d instances that had expired.", deleted)
        return Round()
