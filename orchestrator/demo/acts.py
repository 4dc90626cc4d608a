"""The four acts of the demo, and what is left of one when it is over.

Owns: who sends what to whom, and the trouble that awaits it. Does not own how an act is played (``play``) or
judged (``checks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.client.records import InstanceStatus, StepRecord
from orchestrator.demo.workflows import Transfer

APPROVER = "the demo"
CREDIT = "do:credit-bank-b:1"
"""The step in whose middle a worker is killed."""


@dataclass(frozen=True)
class Trouble:
    """What the next calls at ``place`` for ``holder`` meet: ``unavailable``, ``slow`` or ``refused``."""

    place: str
    holder: str
    kind: str
    times: int = 1


@dataclass(frozen=True)
class Act:
    """One transfer. ``kills`` says that the worker in the middle of its credit is killed."""

    name: str
    title: str
    order: Transfer
    trouble: Trouble | None = None
    kills: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of an act. ``killed_pid`` is the process that was killed in it."""

    act: Act
    id: str
    status: InstanceStatus
    steps: Sequence[StepRecord]
    killed_pid: int | None = None

    def step(self, key: str) -> StepRecord | None:
        """The step of that key, if it was recorded."""
        return next((step for step in self.steps if step.key == key), None)

    def idempotency_key(self, key: str) -> str:
        """The key under which a step of this act books."""
        return f"{self.id}:0:{key}"


APPROVED = Act("approved", "a transfer that is approved and succeeds", Transfer("alice", "bob", 2_500))
FLAKY = Act(
    "flaky",
    "bank B does not answer twice, and is asked again",
    Transfer("alice", "bob", 1_000),
    Trouble("bank-b", "bob", "unavailable", times=2),
)
REFUSED = Act(
    "refused",
    "the last step fails for good, and all is undone in reverse order",
    Transfer("carol", "dave", 5_000),
    Trouble("letters", "dave", "refused"),
)
KILLED = Act(
    "killed",
    "the worker is killed with SIGKILL after bank B booked, before anybody heard of it",
    Transfer("carol", "bob", 7_500),
    Trouble("bank-b", "bob", "slow"),
    kills=True,
)
ACTS = (APPROVED, FLAKY, REFUSED, KILLED)
