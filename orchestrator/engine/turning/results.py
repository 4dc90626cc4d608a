"""What a flush came to: the effects that follow a commit, and what is to be done again.

Owns: the record. Does not own: carrying it out (``runtime``, ``batch``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from orchestrator.engine.running.placement import Ready
from orchestrator.ports import HandOut, Holder
from orchestrator.workflow.execution import Arrival, Outcome


@dataclass(slots=True)
class Results:
    """What a flush came to. Everything here is a hint but ``repeat``, which is work to be done again."""

    handouts: list[HandOut] = field(default_factory=list)
    local: list[HandOut] = field(default_factory=list)
    """Hand-outs whose message must have been lost: to be run here, if there is room."""
    mine: list[HandOut] = field(default_factory=list)
    """Attempts that are claimed by this process, and that it may not know of: to be run here in any case."""
    placed: list[Ready] = field(default_factory=list)
    """Attempts that this process claimed in the turn itself: to be started here."""
    asked: list[tuple[Ready, Outcome]] = field(default_factory=list)
    """Failures of the application's tasks, and the attempt, for which a delay function has to answer."""
    cancels: list[tuple[UUID, str, int]] = field(default_factory=list)
    news: list[UUID] = field(default_factory=list)
    """Instances that came to their end."""
    changed: list[UUID] = field(default_factory=list)
    """Instances of which something was recorded."""
    hints: list[UUID] = field(default_factory=list)
    """Relatives of what was written that should look at it: children and parents."""
    timers: list[tuple[UUID, float]] = field(default_factory=list)
    insisted: list[Holder] = field(default_factory=list)
    """Who is to hold a slot whatever the limits are."""
    released: list[Holder] = field(default_factory=list)
    """Who needs no slot any more, after the commit of what made it need none."""
    repeat: dict[UUID, list[Arrival]] = field(default_factory=dict)
    skipped: bool = False
    """Some of it because somebody else holds the row."""
    uncertain: bool = False
    """Postgres went away: what the flush wrote is unknown."""
