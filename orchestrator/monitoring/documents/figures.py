"""The figures of an account: how many instances, how much of each limit is used, how old the queues are.

Owns: where each figure comes from, in a small function of its own. Does not own: counting and limiting (``control``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from orchestrator.client.listing import CHEAP
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import without_code
from orchestrator.monitoring.documents.values import Document, at
from orchestrator.store.control import counts as stored
from orchestrator.store.views import queues
from orchestrator.workflow.status import HOLDS_SLOT, Status


class Counts(NamedTuple):
    """Instances of a workflow by status, and when (epoch seconds) that was so; ``None``: just now."""

    by_status: Mapping[str, int]
    counted_at: float | None = None

    @property
    def holding(self) -> int:
        """Those that hold a slot."""
        return sum(self.by_status.get(status, 0) for status in HOLDS_SLOT)

    @property
    def queued(self) -> int:
        return self.by_status.get(Status.QUEUED, 0)

    def document(self) -> Document:
        by_status = {status.value: self.by_status.get(status, 0) for status in Status}
        return {"by_status": by_status, "total": sum(by_status.values()), "counted_at": at(self.counted_at)}


def counts(where: Orchestrator, names: Iterable[str]) -> dict[str, Counts]:
    """How many instances each workflow has: few are counted now, of many it is said how many they were lately."""
    with where.lanes.statement() as connection:
        kept = stored.read(connection, where.settings.account)
    found = {}
    for name in names:
        last = kept.get(name)
        if last is None or last.total < CHEAP:
            counted = without_code(name).count(orchestrator=where)
            found[name] = Counts({status.value: number for status, number in counted.items()})
        else:
            found[name] = Counts(last.counts, last.counted_at)
    return found


def limits(where: Orchestrator, counted: Counts, options: Mapping[str, Any], workflow: str) -> Document:
    """The limits of one workflow, and how much of each is used. ``None``: there is no limit of its own."""
    settings = where.settings
    return {
        "concurrency": {"limit": options.get("concurrency"), "used": counted.holding},
        "creation_rate": {"limit": options.get("creation_rate") or settings.workflow_creation_rate},
        "queued": {"limit": settings.max_queued, "used": counted.queued},
        "max_steps": min(options.get("max_steps") or settings.max_steps, settings.max_steps),
    }


def account_limits(where: Orchestrator, counted: Iterable[Counts]) -> Document:
    """The limits of the account, and how much of each is used."""
    settings = where.settings
    used = sum(each.holding for each in counted)
    return {
        "concurrency": {"limit": settings.max_concurrency, "used": used},
        "creation_rate": {"limit": settings.creation_rate},
    }


def queue_ages(where: Orchestrator, names: Iterable[str]) -> dict[str, float]:
    """How long, in seconds, the oldest queued instance of each workflow has waited; those without are left out."""
    wanted = list(names)
    with where.lanes.statement() as connection:
        oldest = queues.oldest(connection, where.settings.account, wanted)
    now = where.now()
    return {name: max(0.0, now - since) for name, since in oldest.items()}
