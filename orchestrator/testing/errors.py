"""What the kit says to a test. Owns: its own errors. Does not own those of workflows (``orchestrator.errors``)."""

from __future__ import annotations

from orchestrator.errors import OrchestratorError


class StillWaiting(OrchestratorError, TimeoutError):
    """What a test waits for does not come by itself: only time, an event or a verb would move the instance on.

    The text says where the instance stands and what it waits for.
    """

    code = "still_waiting"


class NeverIdle(OrchestratorError):
    """Instances go on and on without time passing: a loop that waits for nothing, or sleeps that are disabled."""

    code = "never_idle"


class UnusedMock(OrchestratorError):
    """A mock was set and no step came to use it; the text lists the steps there were."""

    code = "unused_mock"
