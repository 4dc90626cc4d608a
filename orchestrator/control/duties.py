"""What a worker sees to now and then beside queue and alarms: one shape for all of it, and the list.

Owns: the shape, and which duties a worker has. Does not own: what each does (a module each), when cycles come and what
becomes of a duty that fails (``souschef``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.control.counts import Counting
from orchestrator.control.gatekeeping.admission import Admission
from orchestrator.control.gatekeeping.board import Board
from orchestrator.control.gatekeeping.filling import Filling
from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.gatekeeping.limits import Limits
from orchestrator.control.gatekeeping.scripts import Scripts
from orchestrator.control.leases import Leases
from orchestrator.control.orphans import Orphans
from orchestrator.control.overrides import Overriding
from orchestrator.control.retention import Retention
from orchestrator.control.rounds import Round
from orchestrator.control.schedules import Schedules
from orchestrator.settings import Settings
from orchestrator.store.session import Engine
from orchestrator.workflow.language.definition import Registry


class Duty(Protocol):
    """Something that is looked at in every cycle, and most of the time finds without a query that nothing is to do."""

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round at ``now``, for the workflows in ``known`` (``name@version``), which is never empty.

        It may block for some milliseconds: alarms wait meanwhile. What it raises is logged; it is asked again in the
        next cycle.
        """


def standard(
    engine: Engine,
    settings: Settings,
    registry: Registry,
    limits: Limits | None = None,
    scripts: Scripts | None = None,
    gatekeeper: Gatekeeper | None = None,
    lost: Callable[[float], None] = lambda now: None,
) -> list[Duty]:
    """The duties of every worker, in their order. ``limits`` are told what operators set; ``scripts`` are those the
    worker calls otherwise: then a Redis that is silent costs it one time-out a second in all. Without a ``gatekeeper``
    nobody looks after leases; ``lost`` is told when Redis has lost what it held."""
    account, scripts = settings.account, scripts or Scripts(settings)
    board = Board(settings, scripts)
    overriding = Overriding(engine, account, limits or Limits.of_registry(settings, registry), board)
    leases = [] if gatekeeper is None else [Leases(engine, account, gatekeeper, lost, overriding.put)]
    return [
        *leases,  # first: slots are granted no longer than for some seconds after its last round
        overriding,
        Schedules(engine, settings, registry),
        Orphans(engine, account),
        Retention(engine, account),
        Counting(engine, account, board),
        Filling(Admission(settings, scripts)),
    ]
