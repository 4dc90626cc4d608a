"""What one process of a worker asks Redis by: one client, the limits as they stand, and a gate.

Owns: putting these together. Does not own: any of them.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple, Self

from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.control.gatekeeping.limits import Limits
from orchestrator.control.gatekeeping.scripts import Scripts
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Registry


class Means(NamedTuple):
    """Shared by everything in the process, so that a Redis that is silent costs it one time-out a second in all."""

    limits: Limits
    scripts: Scripts
    gate: Gatekeeper

    @classmethod
    def of_process(cls, settings: Settings, registry: Registry) -> Self:
        """Those of this process, which nobody asked anything yet. A forked one needs its own."""
        limits, scripts = Limits.of_registry(settings, registry), Scripts(settings)
        return cls(
            limits, scripts, Gatekeeper(settings, secrets.token_hex(8), limits.concurrency_of, scripts)
        )
