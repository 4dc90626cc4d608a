"""Where workers run, the token buckets of their workflows are there, and full, before somebody creates.

Owns: when. Does not own: the buckets (``gatekeeping.admission``). One that does not exist is born with one token:
without this the first callers after a deployment, or after Redis lost everything, would find no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.control.gatekeeping.admission import Admission
from orchestrator.control.rounds import Round


class Filling:
    """The duty."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def cycle(self, now: float, known: Sequence[str]) -> Round:
        """One round: one call."""
        self._admission.keep(sorted({each.partition("@")[0] for each in known}))
        return Round()
