"""Workflows for the tests of the JSON API and of metrics; a worker process and Flower import this module."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from orchestrator import NonRetryableError, WorkflowEvent, WorkflowStep, workflow


@dataclass
class Basket:
    number: int
    fails: bool = False


def undo(r: object) -> None:
    return None


def refuse(r: object) -> None:
    raise NonRetryableError("it cannot be undone")


@workflow(name="api_order", concurrency=50)
async def order(event: WorkflowEvent[Basket], step: WorkflowStep) -> str:
    """Reserves, waits for an approval, ships."""
    await step.do("reserve", lambda: {"shelf": 7}, rollback=undo)
    await step.do("token", lambda: "hunter2-of-the-api", sensitive=True)
    told = await step.wait_for_event("approval", type="approval")
    if event.payload.fails:
        await step.do("ship", ship)
    return f"approved by {told.payload['by']}"


def ship() -> None:
    raise NonRetryableError("no lorry")


@workflow(name="api_stuck")
async def stuck(event: WorkflowEvent[None], step: WorkflowStep) -> None:
    """Fails, and cannot be undone."""
    await step.do("take", lambda: 1, rollback=refuse)
    await step.do("ship", ship)


@workflow(name="api_steps")
async def steps(event: WorkflowEvent[int], step: WorkflowStep) -> int:
    """As many steps as it is told."""
    for n in range(event.payload):
        await step.do("tick", lambda n=n: n)
    return event.payload


@workflow(name="api_slow")
async def slow(event: WorkflowEvent[float], step: WorkflowStep) -> None:
    """A step that takes as long as it is told."""
    await step.do("doze", asyncio.sleep, event.payload)
