"""The workflows of the account, and one of them.

Owns: both documents. Does not own: the figures in them (``figures``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from orchestrator.client.asking.blocked import SILENT_S
from orchestrator.client.control.status import WorkflowRecord, status
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.schedules import ScheduleRecord, listed
from orchestrator.errors import UnknownWorkflow
from orchestrator.monitoring.documents import figures, instances
from orchestrator.monitoring.documents.values import Document, at
from orchestrator.store.records import listing
from orchestrator.store.views import registered
from orchestrator.store.views.registered import LiveWorker, Registered
from orchestrator.workflow.language.definition import registry
from orchestrator.workflow.status import Status

RECENT = 20
"""Instances that a workflow's document has with it."""


def workflows(where: Orchestrator) -> Document:
    """Every registered workflow with its versions, counts, limits and schedules, and how many live workers know it."""
    with where.lanes.statement() as connection:
        rows = registered.versions(connection, where.settings.account)
        workers = registered.live_workers(connection, where.settings.account, _live_s(where))
    by_name = {name: list(versions) for name, versions in groupby(rows, key=lambda row: row.name)}
    control = status(where)
    records = {each.name: each for each in control.workflows}
    schedules = Counter(each.workflow for each in listed(where))
    return {
        "account": where.settings.account,
        "limits": figures.account_limits(control),
        "is_granting": control.granting,
        "workers": len(workers),
        "workflows": [
            _summary(where, records[name], versions, workers, schedules[name])
            for name, versions in by_name.items()
            if name in records
        ],
    }


def workflow(where: Orchestrator, name: str) -> Document:
    """One workflow: what ``workflows`` says of it, with the options of each version, its schedules, its queue, the
    workers that know it, and its newest instances. Raises ``UnknownWorkflow`` if nothing is known of it."""
    versions, workers = known(where, name)
    (record,) = status(where, name).workflows
    schedules = listed(where, name)
    return {
        **_summary(where, record, versions, workers, len(schedules)),
        "details": [_version(row, workers) for row in versions],
        "schedules": [_schedule(each) for each in schedules],
        "queue": figures.queue(record),
        "live_workers": [_worker(each, name) for each in workers if _knows(each, name)],
        "params_schema": params_schema(name, versions[0].version) if versions else None,
        "instances": instances.page(where, name, limit=RECENT)["instances"],
    }


def known(where: Orchestrator, name: str) -> tuple[list[Registered], list[LiveWorker]]:
    """The registered versions of a workflow, the newest first, and the live workers of the account. Raises
    ``UnknownWorkflow`` if it is not registered and has no instance either."""
    account = where.settings.account
    with where.lanes.statement() as connection:
        versions = registered.versions(connection, account, name)
        if not versions and not listing.page(connection, account, name, tuple(Status), 1, None):
            raise UnknownWorkflow(
                f"No worker has registered a workflow {name!r} in the account {account!r}, and it has no instances."
            )
        return versions, registered.live_workers(connection, account, _live_s(where))


def params_schema(name: str, version: str) -> Document | None:
    """The JSON Schema of the workflow's params, where its code is imported here and says what they are."""
    try:
        definition = registry.get(name, version)
        annotation = definition.payload_type
        return None if annotation is Any else TypeAdapter(annotation).json_schema()
    except (UnknownWorkflow, PydanticUserError):
        return None


def _summary(
    where: Orchestrator,
    record: WorkflowRecord,
    versions: Sequence[Registered],
    workers: Sequence[LiveWorker],
    schedules: int,
) -> Document:
    newest = versions[0] if versions else None
    options = {} if newest is None else json.loads(newest.options)
    return {
        "name": record.name,
        "version": None if newest is None else newest.version,
        "versions": [row.version for row in versions],
        "registered_at": None if newest is None else at(newest.registered_at),
        "counts": figures.counts(record),
        "limits": figures.limits(where, record, options),
        "schedule_count": schedules,
        "worker_count": sum(_knows(each, record.name) for each in workers),
        "oldest_queued_s": None if record.oldest_at is None else record.queue_age,
    }


def _version(row: Registered, workers: Sequence[LiveWorker]) -> Document:
    return {
        "version": row.version,
        "source_hash": row.source_hash,
        "registered_at": at(row.registered_at),
        "has_graph": row.has_graph,
        "options": json.loads(row.options),
        "worker_count": sum(f"{row.name}@{row.version}" in worker.known for worker in workers),
    }


def _knows(worker: LiveWorker, name: str) -> bool:
    return any(each.rpartition("@")[0] == name for each in worker.known)


def _worker(worker: LiveWorker, name: str) -> Document:
    return {
        "id": str(worker.id),
        "hostname": worker.hostname,
        "pid": worker.pid,
        "queues": list(worker.queues),
        "versions": [each.rpartition("@")[2] for each in worker.known if each.rpartition("@")[0] == name],
        "started_at": at(worker.started_at),
        "heartbeat_at": at(worker.heartbeat_at),
    }


def _schedule(record: ScheduleRecord) -> Document:
    return {
        "cron": record.cron,
        "tz": record.tz,
        "version": record.version,
        "params": record.params,
        "paused": record.paused,
        "next_at": at(record.next_at),
        "last_at": at(record.last_at),
    }


def _live_s(where: Orchestrator) -> float:
    return max(SILENT_S, 2 * where.settings.lease)
