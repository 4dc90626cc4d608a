"""What operators set at run time takes effect: every worker reads it, and puts it where scripts look.

Owns: when. Does not own: the rows (``store.control.limits``), what wins over what (``gatekeeping.limits``).
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.control.gatekeeping.board import Board
from orchestrator.control.gatekeeping.limits import Limits, fields
from orchestrator.control.rounds import Round
from orchestrator.store.control import limits as rows
from orchestrator.store.session import Engine

EVERY_S = 2.0
"""An operator's command writes to Redis at once; this brings it back after Redis lost it."""


class Overriding:
    """The duty. Every worker does it: each has ``limits`` of its own, and Redis is written by whoever comes by."""

    def __init__(self, engine: Engine, account: str, limits: Limits, board: Board) -> None:
        self._engine = engine
        self._account = account
        self._limits = limits
        self._board = board
        self._look_at = 0.0

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round: one small read."""
        if now < self._look_at:
            return Round()
        self._look_at = now + EVERY_S
        self.put()
        return Round()

    def put(self) -> None:
        """Have what operators set known here, and stand in Redis, now."""
        with self._engine.begin() as connection:
            found = rows.read(connection, self._account)
        self._limits.know(found)
        self._board.put_limits(fields(found.values()))
