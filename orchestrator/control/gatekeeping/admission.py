"""Admission: who may be created now, and whether it may run at once.

Owns: the limits on creation (tokens of account and workflow, room in the queue), the slot that a new instance takes
where one is free, and what is admitted while Redis is away. Does not own: slots otherwise (``gatekeeper``), waiting for
tokens (``client.creation``), the rows.

All is one call of one script, with a request id: a repeated call changes nothing twice.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.control.gatekeeping.buckets import Alone
from orchestrator.control.gatekeeping.gatekeeper import LEASE_MS
from orchestrator.control.gatekeeping.scripts import Scripts
from orchestrator.errors import OrchestratorError, RateLimited, ServiceUnavailable, TooManyQueued
from orchestrator.ports import monotonic
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Options

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """What was admitted: the first ``count`` of those asked for, of which the first ``running`` hold a slot."""

    count: int
    running: int = 0
    refusal: OrchestratorError | None = None
    """What to raise for the others; ``None`` if there are none."""
    again_s: float | None = None
    """When to ask again, in seconds; ``None`` where waiting is no way out."""
    full_s: float = 1.0
    """In how many seconds the limit that was met allows as much at once as it ever does."""
    young_s: float = 0.0
    """For so many seconds the limit has not been kept long enough to allow what one second does."""


class Admission:
    """Of one account; safe for threads. ``now`` is monotonic."""

    def __init__(
        self, settings: Settings, scripts: Scripts | None = None, now: Callable[[], float] = monotonic
    ) -> None:
        self._settings = settings
        self._now = now
        self._scripts = scripts or Scripts(settings)
        self._admit = self._scripts.script("buckets", "admit")
        self._revoke = self._scripts.script("revoke")
        self._keep = self._scripts.script("buckets", "keep")
        self._alone = Alone(settings.creation_rate, now())
        self._name = secrets.token_hex(8)
        self._requests = itertools.count()

    def admit(
        self, workflow: str, options: Options, ids: Sequence[UUID], *, may_run: bool = True
    ) -> Admitted:
        """Ask for the creation of these. Those that do not get a slot are to be stored as queued: all of them without
        ``may_run``, and while Redis is away."""
        return self._ask(workflow, options, "run" if may_run else "queue", ids)

    def restart(self, workflow: str, options: Options) -> Admitted:
        """Ask for one restart: tokens as for a creation, and no place in the queue."""
        return self._ask(workflow, options, "restart", ())

    def revoke(self, workflow: str, running: Iterable[UUID], queued: int) -> None:
        """Say that admitted instances were not created after all, or are deleted: those that (may) hold a slot, and how
        many that do not. Does nothing while Redis is away; leases end, and what is queued is counted."""
        try:
            self._scripts.call(self._revoke, self._request(), workflow, queued, *map(str, running))
        except ServiceUnavailable as error:
            logger.debug("Slots of instances that are not there are left to expire: %s", error)

    def keep(self, workflows: Iterable[str]) -> None:
        """Have the buckets of the account and of these workflows there, so that they are full by the time somebody
        creates. Does nothing while Redis is away."""
        try:
            self._scripts.call(self._keep, *workflows)
        except ServiceUnavailable as error:
            logger.debug("Buckets are not kept: %s", error)

    def close(self) -> None:
        self._scripts.close()

    def _request(self) -> str:
        return f"{self._name}.{next(self._requests)}"

    def _ask(self, workflow: str, options: Options, kind: str, ids: Sequence[UUID]) -> Admitted:
        settings, count = self._settings, len(ids) or 1
        own = options.creation_rate or settings.workflow_creation_rate
        asked = (self._request(), workflow, count, kind)
        rates = (settings.creation_rate, settings.creation_burst or "", own)
        room = (settings.max_concurrency, options.concurrency or "", settings.max_queued, LEASE_MS)
        try:
            answer = self._scripts.call(self._admit, *asked, *rates, *room, *map(str, ids))
        except ServiceUnavailable as error:
            return self._without_redis(workflow, own, count, error)
        return self._read(workflow, count, answer)

    def _read(self, workflow: str, count: int, answer: Sequence[str]) -> Admitted:
        admitted, running, why, whose, most, again_ms, full_ms, young_ms = answer
        if int(admitted) >= count:
            return Admitted(int(admitted), int(running))
        limit = float(most)
        if why == "full":
            full = TooManyQueued(
                f"{limit:,.0f} instances of workflow {workflow!r} are queued, as many as may be (max_queued): it was "
                "not created. Try again when some have started."
            )
            return Admitted(int(admitted), int(running), full)
        again_s = float(again_ms) / 1000
        subject = f"workflow {workflow!r}" if whose == "workflow" else f"account {self._settings.account!r}"
        refusal = RateLimited(
            f"{limit:g} instances of {subject} may be created or restarted per second, and that is used up: try again "
            f"in {again_s:.3g} s. With wait= creating waits by itself.",
            again_s,
        )
        timing = (again_s, float(full_ms) / 1000, float(young_ms) / 1000)
        return Admitted(int(admitted), int(running), refusal, *timing)

    def _without_redis(self, workflow: str, rate: float, count: int, error: ServiceUnavailable) -> Admitted:
        """A process alone admits little, so that many of them do not break the limits by far; and all of it queues."""
        admitted, scarce = self._alone.take(workflow, rate, count, self._now())
        if admitted >= count:
            return Admitted(admitted)
        again_s = scarce.dry()
        refusal = ServiceUnavailable(
            f"{error.message} Without it one process creates {scarce.rate:g} instances a second, and that is used up: "
            f"it was not created. Try again in {again_s:.3g} s.",
            "redis",
        )
        return Admitted(admitted, 0, refusal, again_s, scarce.burst / scarce.rate)
