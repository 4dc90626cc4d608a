"""Waiting for admission: the verbs that need a token, written once for threads and for asyncio.

Owns: how long and how often is asked again, and both ways of pausing. Does not own: what is admitted
(``control.gatekeeping.admission``).

What may have to wait is a generator of the seconds it pauses; ``drive`` and ``adrive`` run it to its end. A bucket that
is young has not had the time to hold what one second allows: in a new deployment, or after Redis lost everything, the
second instance would be refused. For this first second everybody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeVar

from orchestrator.client.orchestrator import Orchestrator, offload
from orchestrator.ports import dice, monotonic, pause
from orchestrator.workflow.language.definition import Definition

if TYPE_CHECKING:
    from orchestrator.control.gatekeeping.admission import Admitted

T = TypeVar("T")
Work = Generator[float, None, T]

LEAST_S = 0.1
"""Who wants more than one instance does not ask for each token."""
MOST_S = 1.0
SLOWER = 1.5
"""Each further try comes later by this factor: many may wait for the same token."""


class Patience:
    """How long one call waits: ``wait_s`` seconds from now, or while the bucket is young."""

    def __init__(self, wait_s: float | None) -> None:
        self._until = monotonic() + (wait_s or 0.0)
        self._tries = 0

    def pause_s(self, refused: Admitted, missing: int) -> float | None:
        """Seconds until the next try; ``None`` when there is none."""
        if refused.again_s is None:
            return None
        left_s = max(self._until - monotonic(), refused.young_s)
        if left_s <= 0:
            return None
        # A bucket that is full loses what comes: it is looked at before.
        slow_s = min(
            MOST_S, refused.full_s / 2, (LEAST_S if missing > 1 else refused.again_s) * SLOWER**self._tries
        )
        self._tries += 1
        return min(left_s, max(refused.again_s, slow_s) * (1 + dice() / 4))


def awaited(ask: Callable[[], Admitted], wait_s: float | None) -> Work[Admitted]:
    """Ask for one until it is admitted. Raises what it is refused with."""
    patience = Patience(wait_s)
    while True:
        answer = ask()
        if answer.refusal is None:
            return answer
        pause_s = patience.pause_s(answer, 1)
        if pause_s is None:
            raise answer.refusal
        yield pause_s


def restart(where: Orchestrator, definition: Definition) -> None:
    """Spend what a restart costs. Raises ``RateLimited``, and ``ServiceUnavailable`` while Redis is away and this
    process has used up what it may without."""
    drive(awaited(lambda: where.admission.restart(definition.name, definition.options), None))


def drive(work: Work[T]) -> T:
    """Run it in this thread."""
    while True:
        try:
            pause(next(work))
        except StopIteration as end:
            value: T = end.value
            return value


async def adrive(work: Work[T]) -> T:
    """Run it for asyncio: it works in a thread, and pauses without one."""
    while True:
        pause_s, value = await offload(_advance, work)
        if pause_s is None:
            return value  # type: ignore[return-value]
        await asyncio.sleep(pause_s)


def _advance(work: Work[T]) -> tuple[float | None, T | None]:
    """The next pause, or the value at its end: a future cannot hold a ``StopIteration``."""
    try:
        return next(work), None
    except StopIteration as end:
        return None, end.value
