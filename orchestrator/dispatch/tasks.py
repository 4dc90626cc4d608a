"""The two Celery tasks: ``orchestrator.step`` and ``orchestrator.coordinate``.

Owns: their names and arguments. Does not own: anything they do. They believe only ids and a fence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from celery import Celery

from orchestrator.dispatch.publisher import COORDINATE_TASK, STEP_TASK

if TYPE_CHECKING:
    from orchestrator.dispatch.bootsteps import Worker
    from orchestrator.dispatch.native import NativeTask


def register(app: Celery, worker: Worker, base: type[NativeTask] | None = None) -> None:
    """Register both tasks on ``app``; they run in ``worker``'s engine, and derive from ``base`` or what that says."""
    base = base or worker.task_base
    # Celery would register a shared task on every app of the process, which then ran it in this app's worker.

    @app.task(base=base, name=STEP_TASK, ignore_result=True, shared=False)
    async def step(instance: str, key: str, fence: int) -> str:
        """Run one attempt of one step."""
        return await worker.engine.step(UUID(instance), key, fence)

    @app.task(base=base, name=COORDINATE_TASK, ignore_result=True, send_events=False, shared=False)
    async def coordinate(instances: list[str]) -> None:
        """Run a turn of each of these instances."""
        worker.engine.coordinate([UUID(instance) for instance in instances])
