"""Counts: now and then one worker counts the instances of each workflow, so that nobody else has to.

Owns: when, by whom, and that nobody waits for it. Does not own: the query (``store.records.listing``), what is kept
(``store.control.counts``), who reads it (``client.listing``, the scripts that refuse what is too much).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from orchestrator.control.gatekeeping.board import Board
from orchestrator.control.rounds import Round
from orchestrator.ports import monotonic
from orchestrator.store.control import counts
from orchestrator.store.records import listing
from orchestrator.store.session import Engine
from orchestrator.workflow.status import Status

EVERY_S = 10.0
SHARE = 50.0
"""Counting takes at most a fiftieth of one connection's time: what takes a second is counted every fifty."""
LOOK_S = 2.5


class Counting:
    """The duty. Any number of workers may do it: one counts, under an advisory lock, the others find it done.

    It counts in a thread of its own, for what takes half a second at two million instances must hold up no alarm.
    """

    def __init__(self, engine: Engine, account: str, board: Board) -> None:
        self._engine = engine
        self._account = account
        self._board = board
        self._look_at = 0.0
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round: finds what is due, and has it counted. What failed there is raised here, in the next round."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if now < self._look_at or (self._thread is not None and self._thread.is_alive()):
            return Round()
        self._look_at = now + LOOK_S
        workflows = sorted({each.rpartition("@")[0] for each in known})
        with self._engine.begin() as connection:
            due = counts.due(connection, self._account, workflows, EVERY_S, SHARE)
        if due:
            self._thread = threading.Thread(
                target=self._count_all, args=(due,), name="orchestrator-counts", daemon=True
            )
            self._thread.start()
        return Round()

    def _count_all(self, workflows: Sequence[str]) -> None:
        try:
            for workflow in workflows:
                self.count(workflow)
        except Exception as error:
            self._failure = error

    def count(self, workflow: str) -> None:
        """Count the instances of a workflow, unless somebody does or has just done so."""
        with self._engine.begin() as connection:
            if not counts.may_count(connection, self._account, workflow):
                return
            if not counts.due(connection, self._account, [workflow], EVERY_S, SHARE):
                return
            began = monotonic()
            found = listing.count(connection, self._account, workflow)
            counts.keep(connection, self._account, workflow, found, monotonic() - began)
        self._board.put_backlog(workflow, found.get(Status.QUEUED, 0))
