"""The testing kit: workflows in the test's own process, with a clock that the test moves. No server is needed.

Owns: ``WorkflowEnvironment``, and replaying exported histories against today's code. Does not own: any decision about
an instance: those are the engine's own (``orchestrator.workflow``).
"""

from orchestrator.testing.environment import WorkflowEnvironment
from orchestrator.testing.errors import NeverIdle, StillWaiting, UnusedMock
from orchestrator.testing.history import replay_history
from orchestrator.testing.instance import InstanceUnderTest

__all__ = [
    "InstanceUnderTest",
    "NeverIdle",
    "StillWaiting",
    "UnusedMock",
    "WorkflowEnvironment",
    "replay_history",
]
