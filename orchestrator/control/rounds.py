"""What one round of a duty comes to. Owns: that record. Does not own: the duties (``duties`` lists them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.ports import FOREVER


@dataclass(slots=True, frozen=True)
class Round:
    """Instances to wake, each at its moment."""

    wakes: Sequence[tuple[UUID, float]] = ()
    again_at: float = FOREVER
    """When the duty wants its next round, if that is before the next cycle."""
