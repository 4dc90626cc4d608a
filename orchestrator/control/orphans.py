"""The net below children: those whose parent let go of them, and that did not notice, are told to look.

Owns: when to search, and how far at once. Does not own: what an orphan is and the query (``store.records.children``),
nor what becomes of one (``engine.turning.lineage``). As a rule a hint was faster; hints may be lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.control.rounds import Round
from orchestrator.store.records import children
from orchestrator.store.session import Engine

EVERY_S = 10.0
"""Between the end of one search through all children and the beginning of the next."""
AT_ONCE = 1000
"""Children looked at in one cycle, so that fifty thousand of them do not hold it up."""


class Orphans:
    """The duty. Any number of workers may do it at once: it moves alarms, and skips what somebody holds."""

    def __init__(self, engine: Engine, account: str) -> None:
        self._engine = engine
        self._account = account
        self._place = children.BEGINNING
        self._look_at = 0.0

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round. What is rung is woken here, also if its workflow is not known here: it needs no code to end. Its
        alarm brings it back, should this process die."""
        if now < self._look_at:
            return Round()
        with self._engine.begin() as connection:
            rung, self._place = children.orphans(connection, self._account, now, self._place, AT_ONCE)
        if self._place == children.BEGINNING:
            self._look_at = now + EVERY_S
        return Round([(orphan, now) for orphan in rung])
