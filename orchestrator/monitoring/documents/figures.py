"""Figures of the control plane as documents have them: counts, limits and what is used of them, queues.

Owns: their shape. Does not own: any figure (``client.control``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.client.control.limits import LimitsRecord
from orchestrator.client.control.status import ControlStatus, WorkflowRecord
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.monitoring.documents.values import Document, at
from orchestrator.workflow.status import HOLDS_SLOT, Status


def counts(record: WorkflowRecord) -> Document:
    """Instances by status. ``counted_at`` is when many were counted last; ``None``: just now."""
    by_status = {status.value: record.counts.get(status, 0) for status in Status}
    return {"by_status": by_status, "total": sum(by_status.values()), "counted_at": at(record.counted_at)}


def limits(where: Orchestrator, record: WorkflowRecord, options: Mapping[str, Any]) -> Document:
    """The limits of one workflow, who says so, and how much of each is used."""
    most = where.settings.max_steps
    return {
        "concurrency": _limit(record.limits, "concurrency", used=used(record)),
        "creation_rate": _limit(record.limits, "creation_rate"),
        "creation_burst": _limit(record.limits, "creation_burst"),
        "queued": _limit(record.limits, "max_queued", used=record.counts.get(Status.QUEUED, 0)),
        "max_steps": min(options.get("max_steps") or most, most),
        **_changed(record.limits),
    }


def account_limits(status: ControlStatus) -> Document:
    """The limits of the account, who says so, and how much of each is used."""
    slots = status.slots if status.slots is not None else sum(used(each) for each in status.workflows)
    return {
        "concurrency": _limit(status.limits, "concurrency", used=slots),
        "creation_rate": _limit(status.limits, "creation_rate"),
        "creation_burst": _limit(status.limits, "creation_burst"),
        **_changed(status.limits),
    }


def used(record: WorkflowRecord) -> int:
    """Slots that the instances of a workflow hold; while Redis is away, how many are in a status that holds one."""
    if record.slots is not None:
        return record.slots
    return sum(record.counts.get(status, 0) for status in HOLDS_SLOT)


def queue(record: WorkflowRecord) -> Document:
    """How the queue of a workflow is cut, and how old it is. New instances use the last generation."""
    return {
        "oldest_at": at(record.oldest_at),
        "age_s": record.queue_age,
        "generations": [
            {
                "generation": each.generation,
                "shards": each.shards,
                "owned": each.owned,
                "is_draining": each.is_draining,
                "waiting": each.waiting,
                "is_more": each.is_more,
            }
            for each in record.generations
        ],
    }


def _limit(found: LimitsRecord, name: str, used: int | None = None) -> Document:
    limit = found.limits[name]
    told: Document = {"limit": limit.value, "source": limit.source}
    return told if used is None else {**told, "used": used}


def _changed(found: LimitsRecord) -> Document:
    return {"changed_at": at(found.changed_at), "changed_by": found.changed_by}
